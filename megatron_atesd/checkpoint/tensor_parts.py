"""The arithmetic of each operation on plain tensors: a rank's part of a Hugging Face tensor, and the way between both layouts.

Tensor parallelism divides the Hugging Face tensors first: each operation then joins what one rank took, with that rank's numbers of
heads and query groups. So a shard of `linear_fc1` is [its gate rows; its up rows] and a shard of `linear_qkv` whole query groups.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from megatron_atesd.checkpoint.name_table import Entry, Operation
from megatron_atesd.model.architecture import Architecture


def take(source: Any, shape: Sequence[int], operation: Operation, size: int, rank: int) -> Tensor:
    """The part of one Hugging Face tensor that tensor-parallel `rank` of `size` holds.

    source: a tensor of `shape`, or anything that gives one when sliced (safetensors reads only the slice from its file).
    Vocabulary rows are padded with zeros to ceil(V / size). Raises ValueError when `size` does not divide the dimension.
    """
    if operation == "copy":
        return source[:]
    if operation == "vocabulary":
        return _take_vocabulary(source, shape, size, rank)
    dimension = 1 if operation == "columns" else 0
    if shape[dimension] % size:
        raise ValueError(f"dimension {dimension} of shape {tuple(shape)} is not a multiple of tensor-parallel size {size}")
    width = shape[dimension] // size
    part = slice(rank * width, (rank + 1) * width)
    return source[:, part] if dimension else source[part]


def _take_vocabulary(source: Any, shape: Sequence[int], size: int, rank: int) -> Tensor:
    rows = -(-shape[0] // size)
    start, stop = min(rank * rows, shape[0]), min((rank + 1) * rows, shape[0])
    valid = source[start:stop]
    return torch.cat([valid, valid.new_zeros(rows - len(valid), *shape[1:])]) if len(valid) < rows else valid


def join(parts: Sequence[Tensor], operation: Operation, groups: int) -> Tensor:
    """The Megatron parameter made of one rank's parts. groups: query groups of this rank."""
    if operation == "qkv":
        return pack_qkv(parts[0], parts[1], parts[2], groups)
    return torch.cat(list(parts)) if operation == "gate_up" else parts[0]


def pack_qkv(query: Tensor, key: Tensor, value: Tensor, groups: int) -> Tensor:
    """[heads·D, H], [groups·D, H], [groups·D, H] → [(heads + 2·groups)·D, H]: for each query group its heads, then its key, its value."""
    by_group = [part.unflatten(0, (groups, -1)) for part in (query, key, value)]
    return torch.cat(by_group, dim=1).flatten(0, 1)


def unpack_qkv(weight: Tensor, groups: int, head_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of pack_qkv: query [heads·D, H], key [groups·D, H] and value [groups·D, H]."""
    by_group = weight.unflatten(0, (groups, -1))
    query, key, value = by_group.split([by_group.shape[1] - 2 * head_size, head_size, head_size], dim=1)
    return query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)


def split(shards: Sequence[Tensor], entry: Entry, arch: Architecture) -> list[Tensor]:
    """The Hugging Face tensors of an entry, whole, from every TP rank's part of its parameter: the inverse of take and join together.

    A copy has one part. The result may be views of the parts.
    """
    if entry.operation == "copy":
        return [shards[0]]
    if entry.operation == "columns":
        return [torch.cat(list(shards), dim=1)]
    if entry.operation == "vocabulary":
        return [torch.cat(list(shards))[: entry.shape[0]]]
    if entry.operation == "gate_up":
        by_shard = [shard.chunk(2) for shard in shards]
    else:
        by_shard = [unpack_qkv(shard, arch.query_groups // len(shards), arch.head_size) for shard in shards]
    return [torch.cat(parts) for parts in zip(*by_shard, strict=True)]
