"""Exposure by alignment: the highest average score is played, and the state survives a restart."""

import math
from dataclasses import replace

import pytest

from megatron_atesd.config import ExposureConfig
from megatron_atesd.exposure.aligned import AlignedExposure, exposure_grid, score_name
from megatron_atesd.exposure.modes import highest_exposure, make_mode
from megatron_atesd.records import Exposure, UpdateStats

CONFIG = ExposureConfig(mode="aligned", hold=2, grid=3, score_decay=0.25, warmup_exposure=1.0)


def stats(update: int, exposure: Exposure) -> UpdateStats:
    return UpdateStats(update, exposure, kl=0.1, disagreement=0.1, confidence=0.9, progress=None, probe_nll=None, grounding=None)


def test_the_grid_is_evenly_spaced_between_the_clips() -> None:
    assert exposure_grid(replace(CONFIG, grid=5)) == [0, 0.25, 0.5, 0.75, 1]
    assert exposure_grid(replace(CONFIG, clip_low=0.2, clip_high=0.8)) == pytest.approx([0.2, 0.5, 0.8])


def test_the_best_score_is_played_and_held_for_its_window() -> None:
    mode = AlignedExposure(CONFIG)
    assert [mode.propose(0, [1.0, 3.0, 2.0]), mode.propose(1)] == [Exposure(0.5, 0), Exposure(0.5, 0)]


def test_scores_are_averaged_over_windows() -> None:
    mode = AlignedExposure(CONFIG)
    mode.propose(0, [1.0, 3.0, 2.0])
    assert mode.propose(2, [2.5, 0.0, 0.5]) == Exposure(0.0, 1)
    assert mode.scores == pytest.approx([2.75 / 1.25, 0.75 / 1.25, 1.0 / 1.25])  # (0.25 · 1 + 2.5) / (0.25 + 1), …
    mode.propose(4, [0.0, 0.0, 7.0])
    assert mode.scores == pytest.approx([0.6875 / 1.3125, 0.1875 / 1.3125, 7.25 / 1.3125])


def test_of_equal_scores_the_highest_exposure_is_played() -> None:
    assert AlignedExposure(CONFIG).propose(0, [1.0, 1.0, 1.0]) == Exposure(1.0, 0)


def test_unknown_scores_change_nothing() -> None:
    mode = AlignedExposure(CONFIG)
    assert mode.propose(0, None).alpha == CONFIG.warmup_exposure
    mode.propose(2, [1.0, 3.0, 2.0])
    assert mode.propose(4, None) == Exposure(0.5, 2)


def test_a_score_that_is_not_finite_changes_nothing() -> None:
    mode = AlignedExposure(CONFIG)
    mode.propose(0, [1.0, 3.0, 2.0])
    assert mode.propose(2, [1.0, math.nan, 9.0]) == Exposure(0.5, 1)
    assert mode.propose(4, [1.0, 3.0, 9.0]) == Exposure(1.0, 2)


def test_the_warm_up_has_its_own_exposure() -> None:
    assert AlignedExposure(replace(CONFIG, warmup_updates=3, warmup_exposure=0.7)).propose(2) == Exposure(0.7, -1)


def test_a_restored_state_goes_on_alike() -> None:
    mode, again = AlignedExposure(CONFIG), AlignedExposure(CONFIG)
    mode.propose(0, [1.0, 3.0, 2.0])
    again.load_state_dict(mode.state_dict())
    assert again.propose(1) == mode.propose(1)
    assert again.propose(2, [2.0, 0.0, 2.5]) == mode.propose(2, [2.0, 0.0, 2.5])


def test_scores_are_metrics_by_exposure() -> None:
    mode = AlignedExposure(CONFIG)
    metrics = mode.observe(stats(1, mode.propose(0, [1.0, 3.0, 2.0])))
    assert metrics == {"exposure/alpha": 0.5, score_name(0.0): 1.0, score_name(0.5): 3.0, score_name(1.0): 2.0}


def test_no_exposure_is_above_the_highest() -> None:
    assert highest_exposure(replace(CONFIG, clip_high=0.6, warmup_exposure=0.9)) == 0.9


def test_it_is_made_by_its_mode() -> None:
    assert isinstance(make_mode(CONFIG, 10, 1), AlignedExposure)
