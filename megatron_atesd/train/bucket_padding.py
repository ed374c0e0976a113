"""A fault of megatron.core 0.16 to 0.19 mended: moments and master weights that its distributed optimizer saves from the wrong places.

For a checkpoint get_parameter_state_dp_zero puts a buffer's buckets one after the other without the padding between them, and
sharded_param_state_fully_reshardable cuts the parameters out by their places in the buffer with padding. Behind the first padded bucket
every parameter would get values of its neighbours, and the last ones zeros ("which can lead to data corruption", it warns). Buckets are
padded to a multiple of DP and of 128 values. A buffer has several with ddp.overlap_grad_reduce, or with a tied head and several pipeline
stages, where the shared weight has a bucket of its own. Loading is not touched by it.
"""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor


def keep_bucket_padding(optimizer: DistributedOptimizer) -> None:
    """Have `optimizer` gather its state with the padding between buckets, where the cutting expects it."""
    gather: Callable[..., Any] = optimizer.get_parameter_state_dp_zero

    def gather_padded(*arguments: Any, **keywords: Any) -> Any:
        state = gather(*arguments, **keywords)
        for index, buffer in enumerate(optimizer.buffers):
            if state is not None and _is_padded_inside(buffer):
                for of_dtype in state[index].values():
                    _pad(of_dtype, buffer)
        return state

    optimizer.get_parameter_state_dp_zero = gather_padded


def _is_padded_inside(buffer: Any) -> bool:
    """Whether any bucket begins behind where the values of those before it end."""
    ends = accumulate((bucket.numel_unpadded for bucket in buffer.buckets), initial=0)
    return any(bucket.offset != end for bucket, end in zip(buffer.buckets, ends, strict=False))


def _pad(state: dict[str, Any], buffer: Any) -> None:
    """Each flat tensor [values without padding] of a buffer's state becomes [values with padding], one at a time: they are large."""
    for name in [name for name, value in state.items() if isinstance(value, Tensor)]:
        state[name] = _padded(state[name], buffer)


def _padded(values: Tensor, buffer: Any) -> Tensor:
    padded = values.new_zeros(buffer.numel)
    for bucket, part in zip(buffer.buckets, torch.split(values, [bucket.numel_unpadded for bucket in buffer.buckets]), strict=True):
        padded[bucket.offset : bucket.offset + len(part)] = part
    return padded
