"""How a process that writes a checkpoint answers its rank, and that it does not outlive it.

For the answer megatron.core keeps a queue in a manager: one more process beside every rank, for its whole life, that imports torch (half
a GB) to read it, and stays behind where the rank is killed. The writer is a fork of the rank: a file in memory that both have open is
enough.
"""

import os
import pickle
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from queue import Empty
from threading import Thread
from typing import Any

from megatron.core.dist_checkpointing.strategies import filesystem_async


class WriteResults:
    """What megatron.core asks of a queue: a fork puts one result, and the process that it is a fork of gets it once the fork has ended."""

    def __init__(self) -> None:
        """Raises OSError where there is no room for it."""
        self._descriptor = _unnamed_file()
        weakref.finalize(self, os.close, self._descriptor)

    def put(self, result: Any) -> None:
        with open(self._descriptor, "wb", closefd=False) as file:
            pickle.dump(result, file)

    def get_nowait(self) -> Any:
        """Raises queue.Empty when the fork put nothing or was ended as it did: megatron.core tells all ranks of that and nothing else."""
        with open(self._descriptor, "rb", closefd=False) as file:
            file.seek(0)
            try:
                return pickle.load(file)
            except Exception:  # whatever the first half of a pickle raises
                raise Empty from None


def _unnamed_file() -> int:
    """Its descriptor; in memory where the system has that, since a full folder of temporary files is no reason to fail."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("results of a save")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


@contextmanager
def answering(results: WriteResults) -> Iterator[None]:
    """Have megatron.core's save that is asked for inside answer through `results`."""
    before = filesystem_async._results_queue
    filesystem_async._results_queue = results
    try:
        yield
    finally:
        filesystem_async._results_queue = before


def end_with_parent() -> None:
    """End this process as soon as the one that started it has ended."""
    Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
