"""All ranks act on rank 0's exposure, told once a hold window."""

from dataclasses import replace
from typing import Any

import pytest
import torch.distributed as dist

from megatron_atesd.config import ExposureConfig
from megatron_atesd.exposure.modes import Mode, make_mode
from megatron_atesd.exposure.service import ExposureService
from megatron_atesd.records import Exposure, UpdateStats
from tests.support.launch import run_distributed

CONFIG = ExposureConfig(hold=3, lookahead=4, batch=2)
ALIGNED = ExposureConfig(mode="aligned", hold=3, grid=5, score_decay=0.5)
UPDATES = 30


def stats(update: int, exposure: Exposure) -> UpdateStats:
    return UpdateStats(update, exposure, 0.02, 0.1, 0.8, 2.0 - 0.01 * update, 2.0 - 0.01 * update, -1.0)


BINNED = replace(CONFIG, bins=2)


def by_bin(update: int, exposure: Exposure) -> UpdateStats:
    """The second bin's progress is slower, and its KL larger."""
    parts = [stats(update, Exposure(exposure.of(i), exposure.decision_id)) for i in range(2)]
    parts[1] = replace(parts[1], kl=0.03, progress=2.0 - 0.005 * update)
    return replace(stats(update, exposure), progress=None, grounding=None, by_bin=tuple(parts))


def drive(service: ExposureService | Mode, first: int, last: int) -> tuple[list[Exposure], list[dict[str, float]]]:
    exposures, metrics = [], []
    for step in range(first, last):
        exposures.append(service.propose(step))
        metrics.append(service.observe((by_bin if exposures[-1].bins else stats)(step + 1, exposures[-1])))
    return exposures, metrics


def expected(config: ExposureConfig) -> tuple[list[Exposure], list[dict[str, float]]]:
    """What rank 0's controller does on its own."""
    controller = make_mode(config, UPDATES, seed=10)
    controller.observe((by_bin if config.bins > 1 else stats)(0, controller.propose(0)))
    return drive(controller, 0, UPDATES)


def run_ranks(config: ExposureConfig) -> tuple[list[Exposure], list[dict[str, float]], int, dict[str, Any]]:
    dist.init_process_group("gloo")
    service = ExposureService(config, UPDATES, seed=10 + dist.get_rank())  # only rank 0's seed may matter
    service.observe((by_bin if config.bins > 1 else stats)(0, service.propose(0)))
    exposures, metrics = drive(service, 0, UPDATES)
    state = service.state_dict()
    dist.destroy_process_group()
    return exposures, metrics, service.broadcasts, state


def resume_ranks(stop: int, config: ExposureConfig) -> list[Exposure]:
    dist.init_process_group("gloo")
    first = ExposureService(config, UPDATES, seed=10)
    first.observe((by_bin if config.bins > 1 else stats)(0, first.propose(0)))
    drive(first, 0, stop)
    resumed = ExposureService(config, UPDATES, seed=77)
    resumed.load_state_dict(first.state_dict())
    exposures, _ = drive(resumed, stop, UPDATES)
    dist.destroy_process_group()
    return exposures


def aligned_ranks(stop: int) -> tuple[list[Exposure], int]:
    """Each rank has scores of its own, as after a difference in the last bit; from `stop` on a new service goes on. How often it scored."""
    dist.init_process_group("gloo")
    rank, asked = dist.get_rank(), 0
    service = ExposureService(ALIGNED, UPDATES, seed=rank)

    def score() -> list[float]:
        nonlocal asked
        asked += 1
        return [float((asked * place + rank) % 5) for place in range(ALIGNED.grid)]

    exposures = []
    for step in range(UPDATES):
        if step == stop:
            state = [service.state_dict()]
            dist.broadcast_object_list(state, src=0)
            service = ExposureService(ALIGNED, UPDATES, seed=77)
            service.load_state_dict(state[0])
        exposures.append(service.propose(step, score))
    dist.destroy_process_group()
    return exposures, asked


def test_ranks_with_other_scores_act_on_rank_zeros_and_score_once_a_window():
    (first, asked), (second, _) = run_distributed(aligned_ranks, 2, -1)
    assert first == second
    assert len({exposure.alpha for exposure in first}) > 2
    assert asked == 10


def test_scores_are_not_asked_again_when_a_run_resumes_amid_a_window():
    assert run_distributed(aligned_ranks, 2, 13) == run_distributed(aligned_ranks, 2, -1)


@pytest.mark.parametrize("mode", ["learned", "posterior", "target_kl"])
def test_a_killed_controller_goes_on_as_if_nothing_had_been(mode: str):
    config = replace(CONFIG, mode=mode)
    whole, first, again = (ExposureService(config, UPDATES, seed=10) for _ in range(3))
    expected_there = drive(whole, 0, UPDATES)
    drive(first, 0, 13)
    again.load_state_dict(first.state_dict())
    assert drive(again, 13, UPDATES) == (expected_there[0][13:], expected_there[1][13:])


@pytest.mark.parametrize(("world_size", "config", "windows"), [(2, replace(CONFIG, warmup_updates=6), 9), (4, CONFIG, 10)])
def test_every_rank_acts_on_rank_zeros_exposure_told_once_a_window(world_size: int, config: ExposureConfig, windows: int):
    results = run_distributed(run_ranks, world_size, config)
    exposures, metrics = expected(config)
    assert len({exposure.alpha for exposure in exposures}) == windows
    assert [result[0] for result in results] == [exposures] * world_size
    assert [result[1] for result in results] == [metrics, *[[{}] * UPDATES] * (world_size - 1)]
    assert [result[2] for result in results] == [windows] * world_size
    assert [bool(result[3]) for result in results] == [True, *[False] * (world_size - 1)]


@pytest.mark.parametrize("config", [CONFIG, BINNED])
def test_ranks_resume_in_the_middle_of_a_window(config: ExposureConfig):
    assert run_distributed(resume_ranks, 2, 13, config) == [expected(config)[0][13:]] * 2


def test_one_message_tells_the_exposures_of_all_bins():
    results = run_distributed(run_ranks, 4, BINNED)
    exposures, metrics = expected(BINNED)
    assert len({exposure.bins for exposure in exposures}) == 10
    assert all(exposure.bins[0] != exposure.bins[1] for exposure in exposures)
    assert [result[0] for result in results] == [exposures] * 4
    assert results[0][1] == metrics
    assert [result[2] for result in results] == [10] * 4


def test_a_single_process_needs_no_process_group():
    service = ExposureService(CONFIG, UPDATES, seed=10)
    service.observe(stats(0, service.propose(0)))
    assert drive(service, 0, UPDATES) == expected(CONFIG)
    assert service.broadcasts == 0
