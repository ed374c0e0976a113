"""The processes that write a checkpoint end with their rank, at whatever moment it is killed."""

import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from megatron_atesd.checkpoint.saving import _write_and_sum
from tests.support.patience import PATIENCE

CONTEXT = get_context("fork")  # as megatron.core starts them


def rank(report: Connection) -> None:
    writer = CONTEXT.Process(target=_write_and_sum, args=(start_helper, Path(), 0, report, report))
    writer.start()
    report.send(writer.pid)
    time.sleep(4 * PATIENCE)


def start_helper(report: Connection) -> None:
    helper = CONTEXT.Process(target=time.sleep, args=(4 * PATIENCE,))
    helper.start()
    report.send(helper.pid)
    time.sleep(4 * PATIENCE)


def test_a_killed_rank_leaves_neither_writer_nor_its_helpers() -> None:
    told, report = CONTEXT.Pipe(duplex=False)
    job = CONTEXT.Process(target=rank, args=(report,))
    job.start()
    below = [psutil.Process(told.recv()) for _ in range(2)]
    job.kill()
    job.join()
    gone, alive = psutil.wait_procs(below, PATIENCE)
    for process in alive:
        process.kill()
    assert alive == []
    assert len(gone) == 2
