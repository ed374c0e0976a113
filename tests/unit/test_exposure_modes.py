"""The exposures that no reward moves."""

from dataclasses import replace
from typing import Any

import pytest

from megatron_atesd.config import ExposureConfig, validate_exposure
from megatron_atesd.errors import CheckpointError, ConfigError
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


@pytest.mark.parametrize("name", ["fixed", "linear", "cosine", "step", "target_kl", "random", "none"])
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


def test_steps_come_after_the_given_updates_once_the_window_is_over():
    stepping = replace(CONFIG, mode="step", levels=[0.1, 0.5, 0.9], step_at=[2, 5], hold=2)
    assert alphas(stepping, updates=8) == [0.1, 0.1, 0.5, 0.5, 0.5, 0.5, 0.9, 0.9]


def test_a_step_lands_on_the_first_update_after_it_without_windows():
    assert alphas(replace(CONFIG, mode="step", levels=[0.1, 0.9], step_at=[3], hold=1), updates=5) == [0.1, 0.1, 0.1, 0.9, 0.9]


def test_without_step_at_stages_are_equally_long():
    assert alphas(replace(CONFIG, mode="step", levels=[1.0, 0.5, 0.0], hold=1), updates=6) == [1.0, 1.0, 0.5, 0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"levels": []}, r"exposure\.levels is \[\], must be one or more numbers from 0 to 1"),
        ({"levels": [0.5, 1.5]}, r"exposure\.levels is \[0\.5, 1\.5\], must be"),
        ({"levels": [0.0, float("nan")]}, r"exposure\.levels is \[0\.0, nan\], must be"),
        ({"step_at": [3, 4]}, r"exposure\.step_at has 2 numbers, but between 2 exposure\.levels there are 1 steps"),
        ({"levels": [0, 0.5, 1], "step_at": [5, 5]}, r"exposure\.step_at is \[5, 5\], must be rising"),
        ({"step_at": [0]}, r"exposure\.step_at is \[0\], must be rising"),
        ({"step_at": [10]}, r"exposure\.step_at is \[10\], must be rising numbers of updates, above 0 and below run\.updates 10"),
        ({"step_at": [9], "hold": 2}, r"exposure\.levels \[1\.0\] are never played: each is over before a window of exposure\.hold 2"),
        ({"levels": [0.1, 0.2, 0.3, 0.4], "hold": 4}, r"exposure\.levels \[0\.3\] are never played"),
        ({"levels": [0.1, 0.2, 0.3], "step_at": [4, 5], "hold": 3}, r"exposure\.levels \[0\.2\] are never played"),
        ({"warmup_updates": 5}, r"exposure\.levels \[0\.0\] are never played"),
        ({"levels": [0.5] * 11}, r"exposure\.levels has 11 stages, but run\.updates is 10"),
    ],
)
def test_steps_that_cannot_be_are_refused(settings: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        validate_exposure(replace(CONFIG, mode="step", **settings), 10)
    validate_exposure(replace(CONFIG, mode="fixed", **settings), 10)  # other modes have no use for them
