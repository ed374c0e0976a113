"""This rank's place in the process groups, and what one rank hands to the others of its group."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state

T = TypeVar("T")


def is_main() -> bool:
    """True on the one rank that writes files and talks to the user."""
    return dist.get_rank() == 0


def broadcast_from_last_stage(tensor: torch.Tensor) -> None:
    """Overwrite `tensor` on every pipeline stage with the last stage's. Collective over the pipeline; nothing to do without one."""
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        group: Any = parallel_state.get_pipeline_model_parallel_group()
        dist.broadcast(tensor, parallel_state.get_pipeline_model_parallel_last_rank(), group)


def sum_over_tensor_ranks(tensor: torch.Tensor) -> None:
    """Overwrite `tensor` with its sum over tensor-parallel ranks, equal on all. Collective over them; nothing to do without others."""
    if parallel_state.get_tensor_model_parallel_world_size() == 1:
        return
    group: Any = parallel_state.get_tensor_model_parallel_group()
    if tensor.device.type != "cpu":
        dist.all_reduce(tensor, group=group)
        return
    tensor.copy_(torch.stack(all_parts(tensor, group)).sum(dim=0))  # in the same order on every rank


def all_parts(tensor: torch.Tensor, group: dist.ProcessGroup) -> list[torch.Tensor]:
    """Each rank's `tensor`, of one shape, in the order of the ranks of `group`. Collective over it.

    On a CPU they go straight from rank to rank: gloo's own collectives take several times as long for a few kilobytes.
    """
    tensor = tensor.contiguous()
    ranks, mine = dist.get_process_group_ranks(group), dist.get_rank(group)
    parts = [tensor if rank == mine else torch.empty_like(tensor) for rank in range(len(ranks))]
    if tensor.device.type != "cpu":
        dist.all_gather(parts, tensor, group=group)
        return parts
    others = [(rank, part) for rank, part in zip(ranks, parts, strict=True) if part is not tensor]
    messages = [dist.isend(tensor, rank, group) for rank, _ in others] + [dist.irecv(part, rank, group) for rank, part in others]
    for message in messages:
        assert message is not None
        message.wait()
    return parts


def data_parallel_place() -> tuple[int, int]:
    """(rank, size) in data parallelism: which share of a batch is this process's."""
    return parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()


def tensor_parallel_first() -> bool:
    """True on the first rank of each tensor-parallel group."""
    return parallel_state.get_tensor_model_parallel_rank() == 0


def patient_barrier() -> Callable[[], None]:
    """A barrier of all ranks that waits for the last one however long its work takes; a rank that dies still ends it. Collective."""
    group: Any = dist.new_group(backend="gloo", timeout=timedelta(days=365))

    def wait() -> None:
        dist.barrier(group)

    return wait


def gathered(mine: T, group: Any = None) -> list[T]:
    """Each rank's object, in the order of the ranks of `group` (None: of all; of this process, where there are no others). Collective.

    Objects are pickled between the ranks of one job; tensors should be on the CPU.
    """
    if not dist.is_initialized():
        return [mine]
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, mine, group=group)
    return everyone


def from_rank_0(mine: T) -> T:
    """Rank 0's object on all ranks; what the others give is dropped. Collective."""
    box = [mine]
    dist.broadcast_object_list(box, src=0)
    return box[0]
