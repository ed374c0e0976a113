"""How a process that writes a checkpoint answers its rank, and that it does not outlive it.

For the answer megatron.core keeps a queue in a manager: one more process beside every rank, for its whole life, that imports torch (half
a GB) to read it, and stays behind where the rank is killed. The writer is a fork of the rank: a file that both have open is enough.
"""

import os
import pickle
import tempfile
from multiprocessing import parent_process
from queue import Empty
from threading import Thread
from typing import Any

from megatron.core.dist_checkpointing.strategies import filesystem_async


class WriteResults:
    """What megatron.core asks of a queue: a fork puts one result, and the process that it is a fork of gets it once the fork has ended."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (get_nowait closes it)

    def put(self, result: Any) -> None:
        """Raises OSError where the folder of temporary files is full."""
        pickle.dump(result, self._file)
        self._file.flush()

    def get_nowait(self) -> Any:
        """Once. Raises queue.Empty when nothing was put."""
        with self._file as file:
            file.seek(0)
            try:
                return pickle.load(file)
            except EOFError:
                raise Empty from None


def install_save_queue() -> None:
    """Have megatron.core's next save answer through a WriteResults of its own."""
    filesystem_async._results_queue = WriteResults()


def end_with_parent() -> None:
    """End this process as soon as the one that started it has ended."""
    Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
