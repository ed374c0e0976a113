"""The six statistics that the policy sees."""

import math

import pytest

from megatron_atesd.exposure.state import TrainingState
from megatron_atesd.records import Exposure, UpdateStats


def observed(*rows: tuple[int, float, float, float, float, float]) -> TrainingState:
    """rows: update, KL, mismatch, confidence, probe NLL, α."""
    state = TrainingState(decay=0.75)
    for update, kl, mismatch, confidence, probe_nll, alpha in rows:
        state.observe(UpdateStats(update, Exposure(alpha, 0), kl, mismatch, confidence, probe_nll, probe_nll, -1.0))
    return state


def test_what_is_unknown_is_zero():
    assert TrainingState(decay=0.9).features(progress=0.25) == [-0.5, 0, 0, 0, 0, 0]


def test_update_zero_brings_the_probe_alone():
    state = observed((0, math.nan, math.nan, math.nan, 2.0, 0.3), (1, 0.5, 0.1, 0.8, 1.0, 0.3))
    assert state.features(0.5)[4] == pytest.approx(math.log((0.75 * 2.0 + 0.25 * 1.0) / 2.0))
    assert state.alpha == 0.3
    assert state.kl == 0.5


def test_features_are_averages_on_a_common_scale():
    state = observed((0, 0, 0, 0, 2.0, 1.0), (1, 0.4, 0.2, 0.7, 2.0, 1.0), (2, 0.8, 0.6, 0.9, 2.0, 0.2))
    expected = [
        0.0,
        2 * (0.75 * 1.0 + 0.25 * 0.2) - 1,
        math.log((0.75 * 0.4 + 0.25 * 0.8) / 0.4),
        2 * (0.75 * 0.2 + 0.25 * 0.6) - 1,
        0.0,
        0.8,
    ]
    assert state.features(0.5) == pytest.approx(expected)


def test_log_ratios_are_cut():
    assert observed((0, 0, 0, 0, 1.0, 0), (1, 1.0, 0, 0, 1.0, 0), (2, 1e9, 0, 0, 1.0, 0)).features(0)[2] == 3.0
