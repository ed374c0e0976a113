"""One outcome for all ranks of a step that may fail on any of them.

A rank that raises alone leaves the others waiting in their next collective; here they learn of it and raise the same.
"""

from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch.distributed as dist
from megatron.core.dist_checkpointing.core import CheckpointingException
from torch.distributed.checkpoint.api import CheckpointException

from megatron_atesd.errors import CheckpointError
from megatron_atesd.parallel.groups import gathered

T = TypeVar("T")

# What megatron.core and torch raise for files that cannot be written, are missing, cut short or of another model.
STORAGE_ERRORS = (CheckpointingException, CheckpointException, UnpicklingError, EOFError, OSError, KeyError, RuntimeError, ValueError)


def place() -> tuple[int, int]:
    """(rank, number of ranks); (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def agreed(step: Callable[[], T], failing: str) -> list[T]:
    """Every rank's result of `step`, in rank order. Collective.

    When it fails on any rank, all raise the same CheckpointError: `failing` and the cause on the first rank that knows one.
    """
    mine: list[Any] = [None]
    said, cause = "", None
    try:
        mine[0] = step()
    except CheckpointError as error:
        said, cause = str(error), error
    except STORAGE_ERRORS as error:
        said, cause = f"{failing}: {describe(error)}", error
    outcomes = gathered((mine[0], said))
    if known := [told for _, told in outcomes if told]:
        raise CheckpointError(known[0]) from cause
    return [result for result, _ in outcomes]


def on_rank_0(step: Callable[[], T], failing: str) -> T:
    """The result of `step`, done by rank 0 alone, on all ranks; fails as `agreed` does. Collective."""
    return agreed(lambda: step() if place()[0] == 0 else None, failing)[0]  # pyright: ignore[reportReturnType]


def describe(error: BaseException) -> str:
    """The cause in one line; of a failed write on several ranks, the first rank's."""
    if isinstance(error, CheckpointException):
        error = next((pair[0] for pair in error.failures.values()), RuntimeError("another rank could not write"))
    return " ".join(f"{error}".split())[:400] or type(error).__name__
