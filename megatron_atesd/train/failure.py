"""How a rank fails under torchrun: the culprit's traceback is in torchrun's report, and ranks that only lost it do not hide it."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from megatron_atesd.errors import AtesdError
from megatron_atesd.train.heartbeat import who_is_late

# torchrun looks at its processes ten times a second and ends them all when one has failed. It takes whichever failed in the earliest
# second for the root cause: a rank that lost its connection to the culprit must not fail in the same one.
_GRACE_SECONDS = 5.0
_LOST = ("gloo/transport", "pair closure")  # gloo raises plain RuntimeErrors


class LostRankError(RuntimeError):
    """A collective failed because another rank ended or did not come in time."""


@contextmanager
def failing_visibly() -> Iterator[None]:
    """Around the work of a rank: an exception goes to torchrun's report, a fatal signal (also NCCL's abort) prints the stack.

    Raises LostRankError, after some seconds, for an exception that another rank caused.
    """
    handler = get_error_handler()
    handler.initialize()
    try:
        with _naming_the_lost():
            yield
    except AtesdError:
        raise
    except Exception as error:
        handler.record_exception(error)
        raise


@contextmanager
def _naming_the_lost() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_lost_connection(error):
            raise
        lost = LostRankError(f"rank {os.environ.get('RANK', 0)} lost another rank: {who_is_late()}")
        print(lost, file=sys.stderr, flush=True)
        time.sleep(_GRACE_SECONDS)
        raise lost from error


def is_lost_connection(error: Exception) -> bool:
    """Whether a collective failed for want of another rank."""
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in _LOST)
