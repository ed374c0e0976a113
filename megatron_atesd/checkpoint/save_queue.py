"""A helper process of megatron.core's checkpoint writer that does not outlive its rank.

megatron.core keeps the queue of write results in a manager process, for the whole life of a rank, and asks it to end when the rank
ends by itself. A rank that is killed (out of memory, a node that goes down) would leave it behind for ever.
"""

import os
import signal
from multiprocessing import get_context, parent_process
from multiprocessing.managers import SyncManager
from threading import Thread


def install_save_queue() -> None:
    """Give megatron.core, once, a queue whose process ends with this one, however this one ends."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async  # slow to import: the helper process does without

    if filesystem_async._results_queue is None:
        manager = SyncManager(ctx=get_context("spawn"))
        manager.start(initializer=_serve_until_the_end)
        filesystem_async._results_queue = manager.Queue()


def _serve_until_the_end() -> None:
    """A signal that asks the job to save and stop reaches this process too (torchrun signals a rank's whole process group)."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """End this process as soon as the one that started it has ended."""
    Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
