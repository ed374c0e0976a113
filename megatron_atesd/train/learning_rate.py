"""The learning rate of each update, by megatron.core's scheduler."""

from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_atesd.config import ScheduleConfig


def learning_rate_scheduler(
    optimizer: MegatronOptimizer, config: OptimizerConfig, schedule: ScheduleConfig, updates: int
) -> OptimizerParamScheduler:
    """Sets lr · u / W for update u of the W of the warm-up, then the decay, which would end at min_lr with update `updates` + 1.

    megatron.core counts finished updates, so that its own warm-up would spend the first update on a learning rate of 0: here it starts at
    lr / W, one step ahead. Only the count is taken from a checkpoint, all else from the settings.
    """
    assert config.lr is not None
    warmup = max(1, schedule.warmup_updates)
    scheduler = OptimizerParamScheduler(
        optimizer,
        init_lr=config.lr / warmup,
        max_lr=config.lr,
        min_lr=schedule.min_lr,
        lr_warmup_steps=warmup - 1,
        lr_decay_steps=updates,
        lr_decay_style="WSD" if schedule.decay == "wsd" else schedule.decay,
        start_wd=config.weight_decay,
        end_wd=config.weight_decay,
        wd_incr_steps=updates,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
        wsd_decay_steps=schedule.decay_updates or None,
        lr_wsd_decay_style="linear",
    )
    scheduler.step(increment=0)
    return scheduler
