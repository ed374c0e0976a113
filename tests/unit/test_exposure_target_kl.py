"""Mode target_kl: α moves by how far the windows' KL is from its target."""

from dataclasses import replace
from typing import Any

import pytest

from megatron_atesd.config import ExposureConfig, validate_exposure
from megatron_atesd.errors import CheckpointError, ConfigError
from megatron_atesd.exposure.modes import Mode, highest_exposure, make_mode
from megatron_atesd.records import Exposure, UpdateStats

CONFIG = ExposureConfig(mode="target_kl", target_kl=0.04, target_rate=0.2, start=0.3, hold=3)


def student(alpha: float, update: int) -> float:
    """A KL that rises with α, and is smaller the longer the training."""
    return (0.01 + 0.1 * alpha**2) * (1 + 1 / update)


def drive(mode: Mode, first: int, last: int) -> list[Exposure]:
    exposures = []
    for step in range(first, last):
        exposures.append(mode.propose(step))
        kl = student(exposures[-1].alpha, step + 1)
        mode.observe(UpdateStats(step + 1, exposures[-1], kl, 0.1, 0.8, None, None, None))
    return exposures


def by_hand(config: ExposureConfig, windows: int) -> list[float]:
    """α of each window: projected ascent on the mean KL of the window before."""
    alphas = [min(max(config.start, config.clip_low), config.clip_high)]
    for window in range(windows - 1):
        kls = [student(alphas[-1], config.hold * window + i + 1) for i in range(config.hold)]
        moved = alphas[-1] + config.target_rate * (1 - sum(kls) / config.hold / config.target_kl)
        alphas.append(min(max(moved, config.clip_low), config.clip_high))
    return alphas


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, clip_low=0.2, clip_high=0.4), replace(CONFIG, start=0.9, target_rate=2.0)])
def test_alpha_ascends_by_the_relative_gap_to_the_target(config: ExposureConfig):
    played = [exposure.alpha for exposure in drive(make_mode(config, 30, 1), 0, 30)]
    assert played == pytest.approx([alpha for alpha in by_hand(config, 10) for _ in range(3)])
    assert len(set(played)) >= 3


def test_alpha_settles_where_the_kl_is_the_target():
    last = drive(make_mode(CONFIG, 600, 1), 0, 600)[-1].alpha
    assert student(last, 600) == pytest.approx(CONFIG.target_kl, rel=0.01)


def test_the_warm_up_moves_nothing():
    played = [exposure.alpha for exposure in drive(make_mode(replace(CONFIG, warmup_updates=4), 30, 1), 0, 10)]
    assert played[:7] == [1.0] * 4 + [0.3] * 3
    assert played[7] != 0.3


def test_a_window_of_skipped_updates_moves_nothing():
    mode = make_mode(CONFIG, 30, 1)
    first = drive(mode, 0, 3)[-1].alpha
    skipped = [mode.propose(step).alpha for step in range(3, 9)]
    assert len(set(skipped)) == 1
    assert skipped[0] != first


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_a_resumed_mode_goes_on_exactly(stop: int):
    whole, first, again = (make_mode(CONFIG, 30, 1) for _ in range(3))
    expected = drive(whole, 0, 30)[stop:]
    drive(first, 0, stop)
    again.load_state_dict(first.state_dict())
    assert drive(again, stop, 30) == expected


def test_a_state_of_another_mode_is_refused():
    with pytest.raises(CheckpointError, match=r"random.*target_kl"):
        make_mode(CONFIG, 10, 1).load_state_dict(make_mode(ExposureConfig(mode="random"), 10, 1).state_dict())


def test_no_exposure_exceeds_the_clip():
    assert highest_exposure(replace(CONFIG, clip_high=0.6, start=0.9)) == 0.6


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"target_kl": 0.0}, r"exposure\.target_kl is 0\.0, must be greater than 0"),
        ({"target_rate": -0.1}, r"exposure\.target_rate is -0\.1, must be greater than 0"),
        ({"warmup_updates": 10}, r"exposure\.warmup_updates is 10, must be below run\.updates 10"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        validate_exposure(replace(CONFIG, **settings), 10)
