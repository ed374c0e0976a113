"""A decider for each difficulty bin: which problems a bin has, and that a bin's decider is what it would be alone."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from megatron_atesd.config import ExposureConfig, validate_exposure
from megatron_atesd.errors import CheckpointError, ConfigError, DataError
from megatron_atesd.exposure.bins import BinnedExposure, bin_number, even_edges
from megatron_atesd.exposure.modes import Mode, highest_exposure, make_mode
from megatron_atesd.records import Exposure, UpdateStats

CONFIG = ExposureConfig(bins=2, hold=3, lookahead=4, fixed_by_bin=[0.2, 0.9], grid=3, target_kl=0.04)
MODES = ["fixed", "learned", "aligned", "posterior", "target_kl"]
SEEDS = (10, 10 + 2**63)  # of the two bins
UPDATES = 40


def stats(update: int, exposure: Exposure, easy: bool) -> UpdateStats:
    """What a bin hears: the easy one's progress likes α = 1, the hard one's α = 0."""
    level = 2.0 - 0.01 * update + 0.002 * (exposure.alpha if easy else 1 - exposure.alpha) * math.sin(update)
    return UpdateStats(update, exposure, 0.02 + 0.03 * exposure.alpha * (1 + easy), 0.1, 0.8, level, level, -exposure.alpha)


def scores(step: int, easy: bool) -> list[float]:
    return [math.sin(step + place + 5 * easy) for place in range(CONFIG.grid)]


def together(mode: Mode, first: int, last: int) -> list[tuple[Exposure, dict[str, float]]]:
    """As the service and the loop drive a mode with bins."""
    found = []
    for step in range(first, last):
        exposure = mode.propose(step, scores(step, True) + scores(step, False))
        parts = tuple(stats(step + 1, Exposure(exposure.of(i), exposure.decision_id), i == 0) for i in range(2))
        whole = replace(parts[0], exposure=exposure, progress=None, grounding=None, by_bin=parts)
        found.append((exposure, mode.observe(whole)))
    return found


def alone(config: ExposureConfig, number: int) -> list[tuple[Exposure, dict[str, float]]]:
    """A bin's decider by itself."""
    mode = make_mode(replace(config, bins=1, fixed=config.fixed_by_bin[number]), UPDATES, SEEDS[number])
    found = []
    for step in range(UPDATES):
        exposure = mode.propose(step, scores(step, number == 0))
        found.append((exposure, mode.observe(stats(step + 1, exposure, number == 0))))
    return found


@pytest.mark.parametrize("mode", MODES)
def test_each_bins_decider_does_what_it_would_do_alone(mode: Any) -> None:
    config = replace(CONFIG, mode=mode)
    found = together(make_mode(config, UPDATES, SEEDS[0]), 0, UPDATES)
    for i in range(2):
        expected = alone(config, i)
        assert [(exposure.of(i), exposure.decision_id) for exposure, _ in found] == [(e.alpha, e.decision_id) for e, _ in expected]
        assert [{n.removeprefix(f"bin{i}/"): v for n, v in m.items() if n.startswith(f"bin{i}/")} for _, m in found] == [
            metrics for _, metrics in expected
        ]
    assert any(exposure.of(0) != exposure.of(1) for exposure, _ in found)
    assert all(exposure.alpha == (exposure.of(0) + exposure.of(1)) / 2 for exposure, _ in found)


@pytest.mark.parametrize("stop", [12, 13])
@pytest.mark.parametrize("mode", MODES)
def test_a_resumed_mode_goes_on_exactly(mode: Any, stop: int) -> None:
    whole, first, again = (make_mode(replace(CONFIG, mode=mode), UPDATES, seed) for seed in (10, 10, 77))
    expected = together(whole, 0, UPDATES)[stop:]
    together(first, 0, stop)
    again.load_state_dict(first.state_dict())
    assert together(again, stop, UPDATES) == expected


def test_a_bin_without_scores_stays_where_it_is() -> None:
    mode = make_mode(replace(CONFIG, mode="aligned"), UPDATES, 1)
    assert mode.propose(0, [1.0, 2.0, 3.0, *[math.nan] * 3]).bins == (1.0, CONFIG.warmup_exposure)
    assert mode.propose(3, [*[math.nan] * 3, 0.3, 0.1, 0.2]).bins == (1.0, 0.0)
    assert mode.propose(6, None).bins == (1.0, 0.0)


def test_one_bin_is_the_mode_itself() -> None:
    assert not isinstance(make_mode(replace(CONFIG, bins=1), UPDATES, 1), BinnedExposure)


def test_a_state_of_another_number_of_bins_is_refused() -> None:
    three = make_mode(replace(CONFIG, mode="random", bins=3), UPDATES, 1)
    with pytest.raises(CheckpointError, match=r"the checkpoint has 2 bins: set exposure\.bins to that"):
        three.load_state_dict(make_mode(replace(CONFIG, mode="random"), UPDATES, 1).state_dict())
    with pytest.raises(CheckpointError, match=r"exposure\.mode is random"):
        three.load_state_dict(make_mode(replace(CONFIG, mode="random", bins=1), UPDATES, 1).state_dict())


def test_no_bins_exposure_is_above_the_highest() -> None:
    assert highest_exposure(replace(CONFIG, mode="fixed", fixed=0.1)) == 0.9


@pytest.mark.parametrize(
    ("values", "bins", "edges"),
    [
        ([2, 3, 4, 5, 6], 2, [3]),  # two and three problems, or three and two: the lower edge
        ([0.5] * 9 + [0.7], 2, [0.5]),
        ([1, 2, 3, 4, 5, 6], 3, [2, 4]),
        ([1] * 50 + [2, 3], 3, [1, 2]),
        ([2, 3] + [4] * 50, 3, [2, 3]),
    ],
)
def test_edges_part_problems_as_evenly_as_equal_values_allow(values: list[float], bins: int, edges: list[float]) -> None:
    assert even_edges(values, bins) == edges
    counts = Counter(bin_number(value, edges) for value in values)
    assert sorted(counts) == list(range(bins))


def test_a_difficulty_at_an_edge_is_below_it() -> None:
    assert [bin_number(value, [1.0, 2.0]) for value in (0.5, 1.0, 1.5, 2.0, 2.5)] == [0, 0, 1, 1, 2]


def test_too_few_difficulties_are_refused() -> None:
    with pytest.raises(DataError, match=r"exposure\.bins is 3, but the training problems have 2 different difficulties"):
        even_edges([1, 2, 2], 3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mode": "random"}, r"exposure\.bins is 2, but with exposure\.mode random no bin can have an α of its own"),
        ({"mode": "fixed", "fixed": 0, "reference": "none"}, r"exposure\.bins is 2, but with exposure\.reference none"),
        ({"mode": "fixed", "fixed_by_bin": [0.5]}, r"exposure\.fixed_by_bin is \[0\.5\], must be 2 numbers from 0 to 1"),
        ({"mode": "fixed", "fixed_by_bin": [0.5, 1.5]}, r"exposure\.fixed_by_bin is \[0\.5, 1\.5\], must be 2"),
        ({"bin_edges": [1.0, 2.0]}, r"exposure\.bin_edges is \[1\.0, 2\.0\], must be 1 rising numbers"),
        ({"bins": 3, "bin_edges": [2.0, 2.0]}, r"exposure\.bin_edges is \[2\.0, 2\.0\], must be 2 rising numbers"),
        ({"bins": 0}, r"exposure\.bins is 0, must be 1 or more"),
    ],
)
def test_bins_that_cannot_be_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate_exposure(replace(CONFIG, **settings), 100)
