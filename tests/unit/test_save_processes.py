"""The processes that write a checkpoint answer their rank, and end with it, at whatever moment it is killed."""

import os
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty

import psutil
import pytest
import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.strategies import filesystem_async

from megatron_atesd.checkpoint.reading import write_folder
from megatron_atesd.checkpoint.save_queue import WriteResults
from megatron_atesd.checkpoint.saving import _write_and_sum
from megatron_atesd.parallel.session import parallel_session
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


def test_the_result_of_a_fork_is_there_when_it_has_ended() -> None:
    results, large = WriteResults(), list(range(1_000_000))  # more than a pipe holds
    fork = CONTEXT.Process(target=results.put, args=(large,))
    fork.start()
    fork.join(PATIENCE)
    assert results.get_nowait() == large


def test_a_fork_that_put_nothing() -> None:
    with pytest.raises(Empty):
        WriteResults().get_nowait()


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_fork_that_was_ended_as_it_put(share: float) -> None:
    """Anything but Empty would leave the other ranks waiting in megatron.core's gather."""
    results = WriteResults()
    results.put(list(range(1000)))
    os.truncate(results._descriptor, int(share * os.fstat(results._descriptor).st_size))
    with pytest.raises(Empty):
        results.get_nowait()


def test_megatron_core_itself_can_save_after_one_of_our_saves(tmp_path: Path) -> None:
    before = filesystem_async._results_queue
    with parallel_session():
        (tmp_path / "hf").mkdir()
        write_folder(tmp_path / "folder", {"run": {"update": 1}, "w": sharded(torch.arange(3.0))}, tmp_path / "hf")
    assert filesystem_async._results_queue is before


def test_a_save_leaves_no_process_behind(tmp_path: Path) -> None:
    with parallel_session():
        before = set(psutil.Process().children(recursive=True))
        (tmp_path / "hf").mkdir()
        write_folder(tmp_path / "folder", {"run": {"update": 1}, "w": sharded(torch.arange(3.0))}, tmp_path / "hf")
        left = [process.cmdline() for process in psutil.Process().children(recursive=True) if process not in before]
        assert left == []


def sharded(values: torch.Tensor) -> ShardedTensor:
    return ShardedTensor.from_rank_offsets("w", values)
