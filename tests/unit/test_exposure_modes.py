"""The exposures that no reward moves."""

from dataclasses import replace
from typing import Any

import pytest

from megatron_atesd.config import ExposureConfig
from megatron_atesd.errors import CheckpointError
from megatron_atesd.exposure.controller import Controller
from megatron_atesd.exposure.modes import make_mode
from megatron_atesd.records import Exposure, UpdateStats

CONFIG = ExposureConfig(hold=2, fixed=0.7, start=0.2, end=1.0, warmup_exposure=0.9)


def alphas(config: ExposureConfig, updates: int = 10, seed: int = 1) -> list[float]:
    mode = make_mode(config, updates, seed)
    return [mode.propose(step).alpha for step in range(updates)]


def test_fixed_never_moves():
    assert make_mode(replace(CONFIG, mode="fixed", warmup_updates=4), 10, 1).propose(0) == Exposure(0.7, -1)


def test_none_exposes_nothing():
    assert make_mode(replace(CONFIG, mode="none"), 10, 1).propose(5) == Exposure(0.0, -1)


def test_linear_goes_from_start_to_end_in_equal_steps():
    assert alphas(replace(CONFIG, mode="linear")) == pytest.approx([0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8, 1.0, 1.0])


def test_cosine_is_half_a_wave():
    low, high = 0.2 + 0.8 * (1 - 2**-0.5) / 2, 0.2 + 0.8 * (1 + 2**-0.5) / 2
    assert alphas(replace(CONFIG, mode="cosine", hold=1), updates=5) == pytest.approx([0.2, low, 0.6, high, 1.0])


def test_schedules_begin_after_the_warm_up():
    assert alphas(replace(CONFIG, mode="linear", warmup_updates=4), updates=8) == pytest.approx([0.9] * 4 + [0.2, 0.2, 1.0, 1.0])


def test_random_is_uniform_between_the_clips():
    drawn = alphas(replace(CONFIG, mode="random", hold=1, clip_low=0.5), updates=4000)
    assert all(0.5 <= alpha <= 1.0 for alpha in drawn)
    assert sum(drawn) / len(drawn) == pytest.approx(0.75, abs=4 * (0.5 / 12**0.5) / 4000**0.5)
    assert sum(alpha < 0.6 for alpha in drawn) / len(drawn) == pytest.approx(0.2, abs=0.03)


def test_random_holds_one_exposure_a_window():
    drawn = alphas(replace(CONFIG, mode="random"), updates=6)
    assert drawn[::2] == drawn[1::2]
    assert len(set(drawn)) == 3


def test_learned_is_the_controller():
    assert isinstance(make_mode(CONFIG, 10, 1), Controller)


@pytest.mark.parametrize("name", ["fixed", "linear", "cosine", "random", "none"])
def test_the_exposure_in_force_is_reported(name: Any):
    mode = make_mode(replace(CONFIG, mode=name), 10, 1)
    exposure = mode.propose(4)
    assert mode.observe(UpdateStats(5, exposure, 0.1, 0.1, 0.8, 2.0, 2.0, -1.0)) == {"exposure/alpha": exposure.alpha}


@pytest.mark.parametrize("stop", [3, 4])
def test_random_continues_exactly(stop: int):
    config = replace(CONFIG, mode="random")
    original = make_mode(config, 10, 1)
    for step in range(stop):
        original.propose(step)
    resumed = make_mode(config, 10, 2)
    resumed.load_state_dict(original.state_dict())
    assert [resumed.propose(step) for step in range(stop, 10)] == [original.propose(step) for step in range(stop, 10)]


def test_a_state_of_another_mode_is_refused():
    with pytest.raises(CheckpointError, match=r"random.*linear"):
        make_mode(replace(CONFIG, mode="linear"), 10, 1).load_state_dict(make_mode(replace(CONFIG, mode="random"), 10, 1).state_dict())
