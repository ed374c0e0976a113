"""A run too short for its controller says so, and says what happens instead."""

from dataclasses import replace
from typing import Any

import pytest

from megatron_atesd.config import ExposureConfig
from megatron_atesd.exposure.advice import advice
from megatron_atesd.exposure.posterior import PosteriorExposure


@pytest.mark.parametrize(
    ("settings", "updates", "said"),
    [
        ({"mode": "learned"}, 100, "exposure.mode learned takes 50 decisions in 100 updates, which teach its policy little"),
        ({"mode": "learned"}, 400, "exposure.mode learned takes 200 decisions in 400 updates"),
        ({"mode": "posterior"}, 49, "exposure.mode posterior takes 25 decisions in 49 updates, too few to try exposures out"),
        ({"mode": "posterior", "hold": 20}, 100, "exposure.mode posterior takes 5 decisions in 100 updates"),
        ({"mode": "posterior", "warmup_updates": 51}, 100, "exposure.mode posterior takes 25 decisions in 100 updates"),
        ({"mode": "aligned", "hold": 5}, 10, "exposure.mode aligned takes 2 decisions in 10 updates, too few to average its scores"),
    ],
)
def test_a_short_run_is_told(settings: dict[str, Any], updates: int, said: str):
    assert (advice(replace(ExposureConfig(), **settings), updates) or "").startswith(said)


@pytest.mark.parametrize(
    ("settings", "updates"),
    [
        ({"mode": "learned"}, 401),
        ({"mode": "posterior", "hold": 8}, 50),
        ({"mode": "posterior", "hold": 16}, 100),
        ({"mode": "aligned", "hold": 5}, 11),
        ({"mode": "fixed"}, 1),
        ({"mode": "random"}, 1),
    ],
)
def test_a_run_that_is_long_enough_is_told_nothing(settings: dict[str, Any], updates: int):
    assert advice(replace(ExposureConfig(), **settings), updates) is None


@pytest.mark.parametrize("updates", [49, 50])
def test_a_run_explores_exactly_where_it_is_told_nothing(updates: int):
    config = ExposureConfig(mode="posterior")
    assert PosteriorExposure(config, updates, 1).explores == (advice(config, updates) is None)
