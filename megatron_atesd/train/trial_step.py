"""A small step against a gradient, to see what it changes: afterwards the weights are what they were, bit for bit, and so are the moments.

The weights wait in the memory of the gradient, which the step has used up: a trial needs no copy of weights or moments, only temporaries
of one parameter. megatron.core's optimizer rounds the moved weights and distributes them as it does after each update.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
from megatron.core.transformer.module import param_is_not_shared
from torch import Tensor

from megatron_atesd.train.optimizer import Optimization

# Of the root mean square of √v over all weights. Weights that no update has touched yet, whose v is 0, would else take the whole step.
DAMPING = 0.01
_BF16_BITS = 16  # of an fp32 that bf16 does not keep


@contextmanager
def trial_step(optimization: Optimization, rms: float, seed: int = 0) -> Iterator[bool]:
    """Inside, the weights are θ − s·g / (√v + δ), a step of root mean square `rms`; g is the accumulated gradient, and is lost.

    v is Adam's second moment, and g² while it is 0 everywhere (before the first update); δ is DAMPING times the root mean square
    of √v. Means are over the weights whose gradient is not 0. Weights in bf16 are rounded at random, up or down: a step smaller than their
    resolution moves them by its mean. seed: of that rounding, the same on every rank.
    Yields False and moves nothing when g is 0 or not finite. Collective over all ranks.
    """
    optimization.part.prepare_grads()
    moved = _make_steps(optimization.part, rms)
    if moved:
        _work_on_weights(optimization, partial(_move_rounded, seed) if optimization.part.config.bf16 else _move)
    try:
        yield moved
    finally:
        if moved:
            optimization.weights_ready()
            _work_on_weights(optimization, _take_back)
        optimization.zero_grad()


def _make_steps(part: Any, rms: float) -> bool:
    """Each weight's gradient becomes what to subtract from it; False when there is no such step."""
    moment, mean = _adam_moment, _mean(part, _adam_moment)
    if mean == 0:
        moment, mean = _own_square, _mean(part, _own_square)
    floor = DAMPING * math.sqrt(mean)
    if not 0 < floor < math.inf:
        return False
    for weight in _weights(part):
        weight.grad.div_(moment(part, weight).sqrt().add_(floor))
    size = math.sqrt(_mean(part, _own_square))
    if not 0 < size < math.inf:
        return False
    for weight in _weights(part):
        weight.grad.mul_(rms / size)
    return True


def _weights(part: Any) -> list[Any]:
    """The optimizer's own weights on this rank: in fp32, of a distributed optimizer this rank's shards."""
    return [weight for weight in part.get_parameters() if weight.grad is not None]


def _adam_moment(part: Any, weight: Any) -> Tensor:
    state = part.optimizer.state.get(weight, {})
    return state["exp_avg_sq"] if "exp_avg_sq" in state else torch.zeros_like(weight)


def _own_square(part: Any, weight: Any) -> Tensor:
    return weight.grad.square()


def _mean(part: Any, values: Callable[[Any, Any], Tensor]) -> float:
    """Mean of values(part, weight) over the weights that have a gradient, each counted once. Collective.

    Without those whose gradient is 0: rows that pad the vocabulary are more or fewer at another layout.
    """
    total = torch.zeros(2, dtype=torch.float64, device=torch.cuda.current_device())
    for weight in _weights(part):
        if param_is_not_shared(weight) and param_is_not_tensor_parallel_duplicate(weight, getattr(part, "tp_group", None)):
            total[0] += values(part, weight).where(weight.grad != 0, 0).sum(dtype=torch.float64)
            total[1] += weight.grad.count_nonzero()
    dist.all_reduce(total, group=part.get_grad_stats_parallel_group())
    summed, count = total.tolist()
    return summed / max(count, 1.0)


@dataclass(frozen=True)
class _InsteadOfAdam:
    """Stands for one step in the place of the optimizer within megatron.core's."""

    weights: list[Any]
    work: Callable[[Any, int], None]

    def step(self) -> None:
        for place, weight in enumerate(self.weights):
            self.work(weight, place)


def _work_on_weights(optimization: Optimization, work: Callable[[Any, int], None]) -> None:
    """Let work(weight, place) change the optimizer's weights, and the model's follow."""
    part = optimization.part
    adam, weights = part.optimizer, _weights(part)
    part.optimizer = _InsteadOfAdam(weights, work)
    try:
        with torch.no_grad():
            part.step_with_ready_grads()
    finally:
        part.optimizer = adam
    optimization.start_gather()


def _move(weight: Any, place: int) -> None:
    moved = weight - weight.grad
    weight.grad.copy_(weight)
    weight.copy_(moved)


def _move_rounded(seed: int, weight: Any, place: int) -> None:
    _move(weight, place)
    # The same on data and tensor ranks that hold a copy. (Of a tied embedding, the last stage rounds its copy otherwise.)
    generator = torch.Generator(weight.device).manual_seed(seed * 2**20 + place)
    noise = torch.randint(2**_BF16_BITS, weight.shape, generator=generator, device=weight.device, dtype=torch.int32)
    weight.copy_((weight.view(torch.int32) + noise).bitwise_and_(-(2**_BF16_BITS)).view(torch.float32))


def _take_back(weight: Any, place: int) -> None:
    weight.copy_(weight.grad)
