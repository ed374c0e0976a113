"""Megatron's optimizer around the model: DistributedDataParallel, mixed precision, clipping and the learning-rate schedule."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_atesd.config import OPTIMIZER_DEFAULTS, ScheduleConfig
from megatron_atesd.config_sections import build_section
from megatron_atesd.errors import ConfigError
from megatron_atesd.model.qwen3 import HiddenStateGPT


@dataclass(frozen=True)
class Optimization:
    """A model wrapped for training (a DistributedDataParallel around each of its chunks), with what moves its weights."""

    wrapped: torch.nn.ModuleList
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler

    def zero_grad(self) -> None:
        """Before the passes of an update."""
        for chunk in self.wrapped:
            cast("DistributedDataParallel", chunk).zero_grad_buffer()
        self.optimizer.zero_grad()

    def step(self) -> tuple[float, float]:
        """Apply the accumulated gradients; returns the gradient norm before clipping and the learning rate used."""
        lr = float(self.optimizer.param_groups[0]["lr"])
        succeeded, norm, _ = cast("tuple[bool, float | None, int | None]", self.optimizer.step())
        if succeeded:
            self.scheduler.step(increment=1)
        return float(norm or 0.0), lr


def build_optimization(
    model: HiddenStateGPT, optimizer: Mapping[str, Any], ddp: Mapping[str, Any], schedule: ScheduleConfig, updates: int
) -> Optimization:
    """Wrap `model` and build its optimizer from the pass-through sections `optimizer:` and `ddp:`."""
    config, ddp_config = optimizer_settings(model.config.params_dtype, optimizer, ddp, schedule)
    wrapped: list[Any] = [DistributedDataParallel(model.config, ddp_config, chunk) for chunk in model.chunks]
    megatron_optimizer = get_megatron_optimizer(config, wrapped, use_gloo_process_groups=torch.cuda.is_available())
    model.config.finalize_model_grads_func = finalize_model_grads
    model.config.grad_scale_func = megatron_optimizer.scale_loss
    return Optimization(torch.nn.ModuleList(wrapped), megatron_optimizer, _scheduler(megatron_optimizer, config, schedule, updates))


def optimizer_settings(
    dtype: torch.dtype, optimizer: Mapping[str, Any], ddp: Mapping[str, Any], schedule: ScheduleConfig
) -> tuple[OptimizerConfig, DistributedDataParallelConfig]:
    """megatron.core's settings from ours, needing neither model nor process groups; raises ConfigError for what it would refuse later."""
    fixed = {"bf16": dtype == torch.bfloat16, "params_dtype": dtype, "min_lr": schedule.min_lr}
    config = build_section("optimizer", OptimizerConfig, fixed, {**OPTIMIZER_DEFAULTS, **optimizer})
    if config.optimizer not in ("adam", "sgd"):
        raise ConfigError(f"optimizer.optimizer is {config.optimizer}, must be adam or sgd")
    if config.use_distributed_optimizer and not torch.cuda.is_available():
        raise ConfigError(
            "optimizer.use_distributed_optimizer is true without CUDA, where torch's Adam stands in for the fused one and its sharded "
            "state cannot be restored from a checkpoint; set it to false"
        )
    defaults = {"grad_reduce_in_fp32": True, "use_distributed_optimizer": config.use_distributed_optimizer}
    return config, build_section("ddp", DistributedDataParallelConfig, {}, {**defaults, **ddp})


def _scheduler(optimizer: MegatronOptimizer, config: OptimizerConfig, schedule: ScheduleConfig, updates: int) -> OptimizerParamScheduler:
    assert config.lr is not None
    scheduler = OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=config.lr,
        min_lr=schedule.min_lr,
        lr_warmup_steps=schedule.warmup_updates,
        lr_decay_steps=updates,
        lr_decay_style="WSD" if schedule.decay == "wsd" else schedule.decay,
        start_wd=config.weight_decay,
        end_wd=config.weight_decay,
        wd_incr_steps=updates,
        wd_incr_style="constant",
        wsd_decay_steps=schedule.decay_updates or None,
        lr_wsd_decay_style="linear",
    )
    scheduler.step(increment=0)
    return scheduler
