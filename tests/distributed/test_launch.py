"""The launcher of the distributed tests: results in rank order, a failing rank's traceback, an end in any case."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from tests.support.launch import run_distributed
from tests.support.patience import PATIENCE


def sum_of_ranks(factor: int) -> tuple[int, int]:
    dist.init_process_group("gloo")
    total = torch.tensor(factor * dist.get_rank())
    dist.all_reduce(total)
    rank = dist.get_rank()
    dist.destroy_process_group()
    return rank, int(total)


def fail_on_rank_one(pids: Path) -> None:
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    (pids / str(orphan.pid)).touch()
    (pids / str(os.getpid())).touch()
    if os.environ["RANK"] == "1":
        raise ValueError("rank one has a bad day")
    time.sleep(3600)


def hang(pids: Path) -> None:
    (pids / str(os.getpid())).touch()
    time.sleep(3600)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def still_running(pids: Path) -> list[str]:
    """Which of the processes go on; a killed one may need a moment to be gone on a busy machine."""
    deadline = time.monotonic() + PATIENCE
    while (left := [path.name for path in pids.iterdir() if is_running(int(path.name))]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def test_results_come_in_rank_order_from_ranks_that_talk():
    assert run_distributed(sum_of_ranks, 2, 10) == [(0, 10), (1, 10)]


def test_the_failing_ranks_traceback_is_raised_and_nothing_is_left(tmp_path: Path):
    with pytest.raises(Exception, match="rank one has a bad day"):
        run_distributed(fail_on_rank_one, 2, tmp_path)
    assert still_running(tmp_path) == []


def test_a_hanging_rank_is_ended(tmp_path: Path):
    with pytest.raises(TimeoutError, match="hang took longer than 3 s"):
        run_distributed(hang, 1, tmp_path, timeout=3)
    assert still_running(tmp_path) == []
