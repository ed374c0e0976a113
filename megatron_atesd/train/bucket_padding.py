"""A fault of megatron.core 0.16 to 0.19 mended: moments and master weights that its distributed optimizer saves from the wrong places.

For a checkpoint get_parameter_state_dp_zero puts a buffer's buckets one after the other without the padding between them, and
sharded_param_state_fully_reshardable cuts the parameters out by their places in the buffer with padding. Behind the first padded bucket
every parameter would get values of its neighbours, and the last ones zeros ("which can lead to data corruption", it warns). Buckets are
padded to a multiple of DP and of 128 values; a buffer has several with ddp.overlap_grad_reduce, or with a tied head on a pipeline stage of
its own. Loading is not touched by it.
"""

from collections.abc import Callable, Mapping
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
            for of_dtype in state[index].values():
                of_dtype |= _padded(of_dtype, buffer)
        return state

    optimizer.get_parameter_state_dp_zero = gather_padded


def _padded(state: Mapping[str, Any], buffer: Any) -> dict[str, Tensor]:
    """Each flat tensor [values without padding] of a buffer's state as [values with padding]."""
    lengths = [bucket.numel_unpadded for bucket in buffer.buckets]
    flat = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    padded = {name: values.new_zeros(buffer.numel) for name, values in flat.items()}
    for name, values in flat.items():
        for bucket, part in zip(buffer.buckets, torch.split(values, lengths), strict=True):
            padded[name][bucket.offset : bucket.offset + len(part)] = part
    return padded
