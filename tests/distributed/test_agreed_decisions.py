"""Decisions that follow a measured number are rank 0's on every rank, also where the numbers differ in the last bit."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch.distributed as dist

from megatron_atesd.config import ExposureConfig
from megatron_atesd.records import Exposure, Problem, UpdateStats
from megatron_atesd.train import sort_problems
from megatron_atesd.train.difficulty import DifficultyBins
from megatron_atesd.train.refresh import GainGate
from megatron_atesd.train.training_run import TrainingRun
from tests.support.launch import run_distributed

LAST_BIT = 2.0**-52


def refreshes(progress: list[list[float | None]], probe_every: int) -> list[int]:
    """Updates after which this rank's teacher is refreshed; progress: of each rank, from the start on."""
    dist.init_process_group("gloo")
    done: list[int] = []
    run = SimpleNamespace(
        config=SimpleNamespace(exposure=ExposureConfig(mode="fixed", probe_every=probe_every)),
        gate=GainGate(1),
        optimization=SimpleNamespace(weights_ready=lambda: None),
    )
    for update, value in enumerate(progress[dist.get_rank()]):
        run.teacher = SimpleNamespace(kind="refreshed", refresh=lambda update=update: done.append(update))
        stats = UpdateStats(update, Exposure(1.0, -1), 0.0, 0.0, 0.0, value, None, None)
        TrainingRun.refresh_teacher(cast("TrainingRun", run), stats)
    return done


def test_all_ranks_refresh_their_teachers_together() -> None:
    zero, one = [1.0, 1.0 - LAST_BIT, 0.5], [1.0, 1.0, 0.5]
    assert run_distributed(refreshes, 2, [zero, one], 1) == [[1, 2], [1, 2]]


def test_the_measurement_after_the_last_update_alone_refreshes_nothing() -> None:
    assert run_distributed(refreshes, 1, [[5.0, None, 4.0, None, 3.0, 2.0]], 2) == [[2, 4]]


def numbers(nlls: list[list[float]]) -> list[int]:
    """Bins of three training problems; nlls: of each rank."""
    dist.init_process_group("gloo")
    train, probe = ([Problem(f"{name}-{i}", f"{name} {i}", "", "") for i in range(3)] for name in ("train", "probe"))
    run = SimpleNamespace(
        config=SimpleNamespace(exposure=ExposureConfig(bins=2), run=SimpleNamespace(updates=1), parallel=None),
        bins=DifficultyBins((train, probe)),
        sampler=SimpleNamespace(used=lambda updates: train),
        probe_problems=probe,
        probe_by_bin=lambda: None,
    )
    heartbeat: Any = SimpleNamespace(enter=lambda *_: nullcontext())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sort_problems, "start_minutes", lambda parallel: 1.0)
        patch.setattr(sort_problems, "_mean_nlls", lambda run, problems: nlls[dist.get_rank()])
        sort_problems.sort_problems(cast("TrainingRun", run), lambda text: None, heartbeat)
    return [run.bins.of(problem) for problem in train]


def test_all_ranks_sort_problems_alike() -> None:
    assert run_distributed(numbers, 2, [[1.0, 1.0 + LAST_BIT, 2.0], [1.0 + LAST_BIT, 1.0, 2.0]]) == [[0, 1, 1], [0, 1, 1]]
