"""Megatron's optimizer around the model: DistributedDataParallel, mixed precision, clipping and the learning-rate schedule."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_atesd.config import OPTIMIZER_DEFAULTS, ScheduleConfig, build_section
from megatron_atesd.errors import ConfigError
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.trained import trained_dtype
from megatron_atesd.train.adam import fuse, is_adam, set_steps, start_moments, start_momentum, translate_steps
from megatron_atesd.train.bucket_padding import keep_bucket_padding
from megatron_atesd.train.learning_rate import learning_rate_scheduler
from megatron_atesd.train.param_gather import finish_gather, prepare_gather, start_gather

DDP_DEFAULTS = {"grad_reduce_in_fp32": True}
_ANY_LAYOUT = {"distrib_optim_sharding_type": "fully_reshardable"}


@dataclass(frozen=True)
class Optimization:
    """A model wrapped for training (a DistributedDataParallel around each of its chunks), with what moves its weights."""

    wrapped: torch.nn.ModuleList
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    peak_lr: float

    def zero_grad(self) -> None:
        """Before the passes of an update."""
        for chunk in self.wrapped:
            cast("DistributedDataParallel", chunk).zero_grad_buffer()
        self.optimizer.zero_grad()

    def start_gather(self) -> None:
        """After a step, which ends with it: with ddp.overlap_param_gather, let the next pass gather what other ranks have updated."""
        for chunk in self.wrapped:
            start_gather(chunk)

    def weights_ready(self) -> None:
        """Weights are whole on return, also between a step and the next forward pass. Collective over data parallelism."""
        for chunk in self.wrapped:
            finish_gather(chunk)

    def sharded_state_dict(self, model: Mapping[str, Any], loading: bool) -> dict[str, Any]:
        """megatron.core sharded state beside the sharded state of the `model`, loadable at any TP × PP × DP. Collective when saving."""
        self.weights_ready()
        start_moments(self.part)
        return self.optimizer.sharded_state_dict(cast("Any", model), loading, metadata=_ANY_LAYOUT)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a loaded state."""
        whole, steps = dict(state), 0
        if is_adam(self.part.optimizer):
            steps = translate_steps(whole.get("optimizer", whole), self.part.optimizer)
        if isinstance(self.part, DistributedOptimizer):
            self._load_distributed(whole, steps)
        else:
            self.optimizer.load_state_dict(whole)
        fuse(self.part.optimizer)

    def _load_distributed(self, state: dict[str, Any], steps: int) -> None:
        moments, adam = state.pop("param_state"), self.part.optimizer
        self.part.load_state_dict(state)
        for of_parameter in adam.state.values():
            of_parameter.pop("step", None)  # torch's counter, on which megatron.core's loader of moments fails
        self.part.load_parameter_state_from_fully_reshardable(moments)
        set_steps(adam, steps)

    @property
    def part(self) -> Any:
        """The one optimizer in megatron.core's chain, which has one a kind of parameter: a dense model has one kind."""
        (part,) = cast("Any", self.optimizer).chained_optimizers
        return part

    def step(self, loss: float = 0.0) -> tuple[float, float]:
        """Apply the accumulated gradients; returns the gradient norm before clipping and the learning rate used. Collective.

        When `loss` or a gradient is not finite, on any rank, nothing moves on any rank (weights, moments, learning-rate schedule) and
        the norm that is returned is NaN.
        """
        lr = float(self.optimizer.param_groups[0]["lr"])
        if not math.isfinite(self._sum_of_norms(loss)):
            return math.nan, lr
        succeeded, norm, _ = cast("tuple[bool, float | None, int | None]", self.optimizer.step())
        if succeeded:
            self.scheduler.step(increment=1)
        self.start_gather()
        return float(norm or 0.0), lr

    def _sum_of_norms(self, loss: float) -> float:
        """Finite if and only if `loss` and all gradients are, on all ranks; the same on all ranks. Collective.

        megatron.core applies whatever norm it finds (only a loss scaler makes it look for NaN), leaves out gradients that tensor ranks
        share, and may decide differently on data-parallel ranks.
        """
        total = torch.tensor(loss, dtype=torch.float32, device=torch.cuda.current_device())
        for chunk in self.wrapped:
            for buffer in cast("Any", chunk).buffers:
                total += torch.linalg.vector_norm(buffer.grad_data, dtype=torch.float32)
        dist.all_reduce(total)
        return total.item()


def build_optimization(
    model: HiddenStateGPT, optimizer: Mapping[str, Any], ddp: Mapping[str, Any], schedule: ScheduleConfig, updates: int
) -> Optimization:
    """Wrap `model` and build the optimizer of what learns of it from the pass-through sections `optimizer:` and `ddp:`.

    Frozen weights have no part in it: no gradient buffer, no master weight, no moments, no message.
    """
    config, ddp_config = optimizer_settings(trained_dtype(model), optimizer, ddp, schedule)
    wrapped: list[Any] = [DistributedDataParallel(model.config, ddp_config, chunk) for chunk in model.chunks]
    megatron_optimizer = get_megatron_optimizer(config, wrapped, use_gloo_process_groups=torch.cuda.is_available())
    model.config.finalize_model_grads_func = finalize_model_grads
    model.config.grad_scale_func = megatron_optimizer.scale_loss
    for part in cast("Any", megatron_optimizer).chained_optimizers:
        fuse(part.optimizer)
        part.init_state_fn = part.init_state_fn or start_momentum  # megatron.core has none for SGD, and calls it to load
        if isinstance(part, DistributedOptimizer):
            keep_bucket_padding(part)
    for chunk in wrapped:
        prepare_gather(chunk)
    pauses: Any = [chunk.no_sync for chunk in wrapped]  # ddp.overlap_grad_reduce must wait for the last micro-batch
    model.config.no_sync_func = pauses if len(wrapped) > 1 else pauses[0]
    scheduler = learning_rate_scheduler(megatron_optimizer, config, schedule, updates)
    assert config.lr is not None
    return Optimization(torch.nn.ModuleList(wrapped), megatron_optimizer, scheduler, config.lr)


def optimizer_settings(
    dtype: torch.dtype, optimizer: Mapping[str, Any], ddp: Mapping[str, Any], schedule: ScheduleConfig
) -> tuple[OptimizerConfig, DistributedDataParallelConfig]:
    """megatron.core's settings from ours, needing neither model nor process groups; raises ConfigError for what it would refuse later.

    dtype: of the parameters that learn.
    """
    fixed = {"bf16": dtype == torch.bfloat16, "params_dtype": dtype, "min_lr": schedule.min_lr}
    config = build_section("optimizer", OptimizerConfig, fixed, optimizer, OPTIMIZER_DEFAULTS)
    if config.optimizer not in ("adam", "sgd"):
        raise ConfigError(f"optimizer.optimizer is {config.optimizer}, must be adam or sgd")
    if config.use_distributed_optimizer and config.optimizer != "adam":
        raise ConfigError(
            f"optimizer.use_distributed_optimizer is true with optimizer.optimizer {config.optimizer}, but megatron.core saves sharded "
            "states of Adam only; set it to false"
        )
    sharded = {"use_distributed_optimizer": config.use_distributed_optimizer}
    ddp_config = build_section("ddp", DistributedDataParallelConfig, sharded, ddp, DDP_DEFAULTS)
    if ddp_config.overlap_param_gather and not (config.use_distributed_optimizer and ddp_config.overlap_grad_reduce):
        raise ConfigError(
            "ddp.overlap_param_gather is true, but needs optimizer.use_distributed_optimizer (otherwise there is nothing to gather) and "
            "ddp.overlap_grad_reduce (otherwise all weights are gathered at once); set both to true, or it to false"
        )
    return config, ddp_config
