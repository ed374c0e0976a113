"""Every process group has the timeout of the settings; the store knows where each rank is, and a late one shows its stack."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.train.failure import is_lost_connection
from megatron_atesd.train.heartbeat import Progress, who_is_late


@pytest.fixture
def session() -> Iterator[None]:
    with parallel_session(timeout_minutes=0.7):
        yield


@pytest.mark.usefixtures("session")
def test_every_process_group_has_the_timeout_of_the_settings() -> None:
    groups: list[Any] = list(distributed_c10d._world.pg_map)
    assert len(groups) > 10
    assert {group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in groups} == {42.0}


@pytest.mark.usefixtures("session")
def test_the_place_of_the_only_rank_is_its_last_phase() -> None:
    progress = Progress(timeout_minutes=1.0)
    for phase in ("the start", "the rollout of update 1"):
        progress.enter(phase)
    progress.close()
    assert who_is_late() == "all ranks are in the same phase (the rollout of update 1)"


@pytest.mark.usefixtures("session")
def test_when_the_store_is_lost_as_well_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: Any) -> None:
        raise dist.DistNetworkError("recvValue failed")

    monkeypatch.setattr("megatron_atesd.train.heartbeat._place_of", lost)
    assert who_is_late() == "the job's store is lost as well, which is on the node of rank 0"


@pytest.mark.usefixtures("session")
def test_a_phase_that_lasts_too_long_shows_its_stack_once(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(timeout_minutes=0.001)
    progress.enter("the probe of update 2")
    progress.timer.join()  # pyright: ignore[reportOptionalMemberAccess]
    said = capsys.readouterr().err
    assert said.startswith("rank 0 has been in the probe of update 2 for 0 s and is here:")
    assert "progress.timer.join()" in said


@pytest.mark.usefixtures("session")
def test_a_phase_that_ended_shows_no_stack(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(timeout_minutes=0.001)
    progress.enter("the probe of update 2")
    progress.close()
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


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
