"""Random-number states of all ranks, for a checkpoint: a run that goes on at the same layout draws what it would have drawn."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker, get_cuda_rng_tracker

from megatron_atesd.parallel.groups import gathered


def rng_states() -> list[Mapping[str, Any]]:
    """Every rank's random-number states, in rank order (equal list on all ranks). Collective."""
    mine = {"torch": torch.get_rng_state(), "tracker": _tracker().get_states()}
    if torch.cuda.is_available():
        mine["cuda"] = torch.cuda.get_rng_state()
    return gathered(mine)


def restore_rng(states: list[Mapping[str, Any]]) -> None:
    """Put this rank's states back; with another world size the seeds of the start stay in force."""
    if len(states) != dist.get_world_size():
        return
    mine = states[dist.get_rank()]
    torch.set_rng_state(mine["torch"])
    _tracker().set_states(mine["tracker"])
    if torch.cuda.is_available() and "cuda" in mine:
        torch.cuda.set_rng_state(mine["cuda"])


def _tracker() -> CudaRNGStatesTracker:
    tracker = get_cuda_rng_tracker()
    assert tracker is not None
    return tracker
