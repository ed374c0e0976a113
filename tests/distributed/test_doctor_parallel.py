"""The doctor over two ranks, of which one has another clock, other settings, or a run directory of its own."""

import os
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest

from megatron_atesd.config import RunConfig, TrainConfig
from megatron_atesd.doctor import examine
from megatron_atesd.doctor.finding import Finding
from megatron_atesd.errors import ConfigError
from megatron_atesd.parallel.session import processes
from tests.support.launch import run_distributed
from tests.support.patience import PATIENCE


@dataclass(frozen=True)
class Examined:
    """What one rank saw of each examination."""

    equal: list[Finding]
    bandwidth: list[Finding]
    warned: str
    settings_differ: str
    no_shared_folder: str
    left: list[str]  # files in the run directory's place


def refusal(config: TrainConfig) -> str:
    with pytest.raises(ConfigError) as refused, examine.examined_processes(config):
        pass
    return str(refused.value)


def examine_jobs(folder: Path) -> Examined:
    odd = os.environ["RANK"] == "1"
    config = TrainConfig(run=RunConfig(dir=str(folder / "runs" / "new")))
    with processes(PATIENCE / 60):
        equal, bandwidth, warned = examine.examine_ranks(config), examine.measure_bandwidth(), StringIO()
        with patch.object(examine, "_timed_all_reduce", lambda *_: 0.001):
            bandwidth += examine.measure_bandwidth()
        clock = SimpleNamespace(time=lambda: 1005.0 if odd else 1000.0, monotonic=examine.time.monotonic, sleep=examine.time.sleep)
        with redirect_stderr(warned), patch.object(examine, "time", clock), examine.examined_processes(config):
            pass
        settings_differ = refusal(TrainConfig(run=RunConfig(dir=config.run.dir, seed=2 if odd else 1)))
        seen = examine.see_token
        with patch.object(examine, "see_token", lambda token, _: seen(token.with_name("elsewhere") if odd else token, 0.1)):
            no_shared_folder = refusal(config)
    return Examined(equal, bandwidth, warned.getvalue(), settings_differ, no_shared_folder, os.listdir(folder))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Examined]:
    return run_distributed(examine_jobs, 2, tmp_path_factory.mktemp("shared"))


def test_ranks_of_one_job_find_no_error(ranks: list[Examined]) -> None:
    assert [finding for finding in ranks[0].equal if finding.severity == "error"] == []


def test_all_ranks_know_the_same_findings(ranks: list[Examined]) -> None:
    assert ranks[0].equal == ranks[1].equal
    assert {"versions", "GPU", "memory", "disk", "run.dir", "clocks", "hosts"} == {finding.check for finding in ranks[0].equal}


def test_a_fast_clock_is_a_warning_that_rank_0_says_once(ranks: list[Examined]) -> None:
    assert ranks[0].warned.count("(rank 1) is at least 5.0 s ahead of that of") == 1
    assert ranks[1].warned == ""


def test_settings_of_one_rank_that_differ_end_the_job_on_all(ranks: list[Examined]) -> None:
    assert {rank.settings_differ for rank in ranks} == {
        "rank 1: settings of section run differ from those of rank 0: give all nodes the same file and overrides"
    }


def test_a_folder_that_is_not_shared_ends_the_job_on_all(ranks: list[Examined]) -> None:
    assert len({rank.no_shared_folder for rank in ranks}) == 1
    assert "does not appear (rank 1): put run.dir on a file system that all nodes share" in ranks[0].no_shared_folder


def test_the_bandwidth_is_measured_over_all_ranks(ranks: list[Examined]) -> None:
    """An all-reduce moves 2 (n - 1) / n of its bytes: in a millisecond 16 MiB."""
    measured, of_a_millisecond = (finding.what for finding in ranks[0].bandwidth)
    assert of_a_millisecond == "16.78 GB/s, all-reduce of 16 MiB over 2 ranks (gloo)"
    assert measured.endswith("GB/s, all-reduce of 16 MiB over 2 ranks (gloo)")
    assert float(measured.split()[0]) > 0


def test_nothing_is_left_in_the_run_directorys_place(ranks: list[Examined]) -> None:
    assert [rank.left for rank in ranks] == [[], []]
