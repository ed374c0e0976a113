"""The store knows where each rank is, and a late one shows its stack; none does once training has ended, in whatever way."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from megatron_atesd.config import ParallelConfig
from megatron_atesd.parallel.session import end_start, parallel_session, session_of
from megatron_atesd.train.failure import is_lost_connection
from megatron_atesd.train.heartbeat import Heartbeat, who_is_late

AT_ONCE, NEVER = 1e-6, 1e6  # minutes


@pytest.fixture
def session() -> Iterator[None]:
    with parallel_session():
        yield


def limits() -> set[float]:
    """Of every process group, in minutes."""
    groups: list[Any] = list(distributed_c10d._world.pg_map)
    assert len(groups) > 10
    return {group._get_backend(torch.device("cpu")).options._timeout.total_seconds() / 60 for group in groups}


@pytest.mark.parametrize(("start", "timeout", "expected"), [(20.0, 0.5, 20.0), (0.5, 20.0, 20.0)])
def test_every_process_group_begins_with_the_limit_of_the_start_which_is_never_the_smaller_one(
    start: float, timeout: float, expected: float
) -> None:
    with session_of(ParallelConfig(timeout_minutes=timeout, start_timeout_minutes=start)):
        assert limits() == {expected}


def test_after_the_start_every_process_group_has_the_limit_of_collectives() -> None:
    parallel = ParallelConfig(timeout_minutes=0.5, start_timeout_minutes=20.0)
    with session_of(parallel):
        end_start(parallel)
        assert limits() == {0.5}


@pytest.mark.usefixtures("session")
def test_the_place_of_the_only_rank_is_its_last_phase() -> None:
    with Heartbeat(NEVER) as heartbeat:
        for phase in ("the start", "the rollout of update 1"):
            heartbeat.enter(phase)
    assert who_is_late() == "all ranks are in the same phase (the rollout of update 1)"


@pytest.mark.usefixtures("session")
def test_when_the_store_is_lost_as_well_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: Any) -> None:
        raise dist.DistNetworkError("recvValue failed")

    monkeypatch.setattr("megatron_atesd.train.heartbeat._place_of", lost)
    assert who_is_late() == "the job's store is lost as well, which is on the node of rank 0"


def timer_of(heartbeat: Heartbeat) -> threading.Timer:
    assert heartbeat.timer is not None
    return heartbeat.timer


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize(("timeout", "of_phase"), [(AT_ONCE, None), (NEVER, AT_ONCE)])
def test_a_phase_that_lasts_too_long_shows_its_stack_once(
    timeout: float, of_phase: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with Heartbeat(timeout) as heartbeat:
        heartbeat.enter("the probe of update 2", of_phase)
        timer_of(heartbeat).join()
    said = capsys.readouterr().err
    assert said.startswith("rank 0 has been in the probe of update 2 for ")
    assert "in test_a_phase_that_lasts_too_long" in said  # the timer may ring before enter() has returned
    assert said.count("has been in") == 1


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize("error", [None, RuntimeError, SystemExit], ids=str)
def test_no_timer_outlives_the_heartbeat(error: type[BaseException] | None) -> None:
    try:
        with Heartbeat(NEVER) as heartbeat:
            heartbeat.enter("the start")
            heartbeat.enter("the probe of update 2")
            if error:
                raise error
    except (RuntimeError, SystemExit):
        pass
    assert [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)] == []


def test_a_stack_is_shown_even_where_the_process_group_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    with parallel_session():
        heartbeat = Heartbeat(AT_ONCE)
        heartbeat.enter("the start", minutes=NEVER)
    timer = timer_of(heartbeat)
    timer.cancel()
    timer.function(*timer.args)
    assert capsys.readouterr().err.startswith("rank 0 has been in the start for ")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[…/gloo/transport/tcp/pair.cc:553] Connection closed by peer"), True),
        (RuntimeError("Application timeout caused pair closure"), True),
        (dist.DistBackendError("NCCL communicator was aborted"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("a bad day"), False),
    ],
)
def test_only_a_failed_collective_is_blamed_on_another_rank(error: Exception, expected: bool) -> None:
    assert is_lost_connection(error) == expected
