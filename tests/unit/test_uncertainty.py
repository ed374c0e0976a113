"""Intervals and the paired test: known values, and how often they are right on simulated evaluations.

Simulated problems differ in difficulty: the rate at which a problem is solved is Beta distributed with mean `p`, from nearly all or
nothing to nearly equal, or there are two kinds of problems (`benchmarks.intervals`). What an interval must contain is the mean over all.
"""

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.intervals import coverage, difficulties
from megatron_atesd.errors import DataError
from megatron_atesd.evaluate.uncertainty import (
    holm,
    mean_a_token,
    mean_difference,
    mean_interval,
    rise_p_value,
    seed_interval,
    t_quantile,
    t_tails,
    wilson_interval,
)

Shares = NDArray[np.floating]
FEW_OF_A_KIND = {  # a few problems that are quite unlike all others: when none of them was drawn, nothing tells of them
    (12, 30, 0.1, "0.02 or 0.9"): 0.90,
    (12, 30, 0.95, "0.2 or 0.98"): 0.84,
    (12, 90, 0.95, "0.2 or 0.98"): 0.92,
}


def rates(rng: np.random.Generator, shape: tuple[int, int], p: float, spread: float) -> Shares:
    return rng.beta(p * spread, (1 - p) * spread, size=shape)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("problems", [30, 90, 210])
@pytest.mark.parametrize("samples", [4, 12])
def test_the_interval_covers_95_percent_whatever_the_spread_of_difficulty(samples: int, problems: int, p: float):
    most = 0.98 if problems == 30 else 0.97  # few outcomes are possible, and Wilson's interval itself steps over 0.97
    for name, difficulty in difficulties(p).items():
        _, found = coverage(difficulty, ["average"], (problems, samples), 4000, seed=samples * problems)["average"]
        assert FEW_OF_A_KIND.get((samples, problems, p, name), 0.93) <= found <= most, (name, found)


@pytest.mark.parametrize("samples", [4, 12])
def test_other_figures_are_covered_too_where_they_are_not_near_0_or_1(samples: int):
    for p in (0.1, 0.5):
        for name in ("Beta, a + b = 1", "Beta, a + b = 3"):
            found = coverage(difficulties(p)[name], ["pass2", f"pass{samples}", "majority"], (90, samples), 4000, seed=1)
            assert all(0.93 <= share <= 0.97 for _, share in found.values()), (p, name, found)


@pytest.mark.parametrize("name", ["Beta, a + b = 3", "0.1 or 0.9"])
def test_the_truth_of_a_simulation_is_that_of_many_problems(name: str):
    difficulty = difficulties(0.5)[name]
    solved = difficulty.draw(np.random.default_rng(0), (400_000,))
    for figure, expected in {"average": np.mean(solved), "pass2": np.mean(1 - (1 - solved) ** 2)}.items():
        assert coverage(difficulty, [figure], (5, 4), 2, seed=1)[figure][0] == pytest.approx(expected, abs=0.003), figure
    assert coverage(difficulty, ["majority"], (5, 4), 2, seed=1)["majority"][0] == pytest.approx(0.5)


def test_the_interval_of_greedy_answers_is_wilsons():
    assert mean_interval([1, 0, 0, 1, 1]) == pytest.approx(wilson_interval(0.6, 5))


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_all_right_and_all_wrong_leave_the_room_that_wilson_leaves(right: float):
    assert mean_interval(np.full(30, right)) == pytest.approx(wilson_interval(right, 30))


def test_equally_hard_problems_count_for_nearly_every_sample():
    share = np.array([0.25, 0.5, 0.5, 0.75, 0.5, 0.25, 0.75, 0.5] * 40)  # spread as of samples 4: 0.03 against 0.25 / 4
    low, high = mean_interval(share)
    assert (high - low) / 2 == pytest.approx(1.96 * share.std() / np.sqrt(len(share)), rel=0.01)


def test_many_evaluations_at_once_are_each_alone():
    values = np.random.default_rng(1).random((5, 7))
    low, high = mean_interval(values)
    assert list(zip(low, high, strict=True)) == [pytest.approx(mean_interval(row)) for row in values]


def test_wilson_interval_by_hand():
    assert wilson_interval(0.5, 10) == pytest.approx((0.236593, 0.763407), abs=1e-6)
    assert wilson_interval(1.0, 10) == pytest.approx((0.722467, 1.0), abs=1e-6)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 29, 30, 209])
@pytest.mark.parametrize("t", [0.0, 0.3, 2.0, 7.0])
def test_students_tails_are_the_incomplete_beta_function(t: float, freedom: int):
    expected = mpmath.betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True)
    assert t_tails(t, freedom) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize(("freedom", "table"), [(1, 12.706), (2, 4.303), (5, 2.571), (29, 2.045), (120, 1.980)])
def test_students_quantiles_are_those_of_the_tables(freedom: int, table: float):
    assert t_quantile(freedom) == pytest.approx(table, abs=5e-4)


@pytest.mark.parametrize("comparisons", [1, 3, 20])
@pytest.mark.parametrize("freedom", [1, 2, 8, 209])
def test_a_quantile_leaves_its_share_outside_however_small(freedom: int, comparisons: int):
    assert t_tails(t_quantile(freedom, 0.05 / comparisons), freedom) == pytest.approx(0.05 / comparisons, rel=1e-6)


def test_the_paired_t_test_by_hand():
    result = mean_difference([1.0, 0.5, 0.75, 1.0], [0.5, 0.5, 0.25, 0.75])  # 1/2, 0, 1/2, 1/4: mean 5/16, variance 11/192
    error = np.sqrt(11 / 192 / 4)
    assert result["difference"] == pytest.approx(5 / 16)
    assert result["ci95"] == pytest.approx([5 / 16 - 3.182446 * error, 5 / 16 + 3.182446 * error], abs=1e-6)
    assert result["p_value"] == pytest.approx(t_tails(5 / 16 / error, 3))


@pytest.mark.parametrize("units", [4, 9])
def test_intervals_of_several_comparisons_hold_together(units: int):
    rng = np.random.default_rng(units)
    noise = rng.normal(0.5, 0.1, size=(2000, 6, units))  # five arms and what all are compared with: no true difference
    intervals = [[mean_difference(arm, study[0], comparisons=5)["ci95"] for arm in study[1:]] for study in noise.clip(0, 1)]
    together = np.mean([all(low <= 0 <= high for low, high in study) for study in intervals])
    assert 0.945 <= together <= 0.98, together


def test_a_corrected_p_value_and_its_interval_say_the_same():
    first, second = [0.9, 0.7, 0.8, 0.9], [0.5, 0.6, 0.5, 0.5]
    alone, among = mean_difference(first, second), mean_difference(first, second, comparisons=10)
    assert among["p_value"] == pytest.approx(10 * alone["p_value"])
    assert alone["p_value"] < 0.05 < among["p_value"]
    assert among["ci95"][0] < 0 < alone["ci95"][0]


def test_it_ignores_what_both_runs_share():
    base = np.random.default_rng(1).choice([0.0, 1.0], size=200)
    better = np.maximum(base, np.repeat([0.25, 0.0], 100))
    assert 0 < mean_difference(better, base)["ci95"][0] < mean_difference(better, base)["ci95"][1] < 0.1
    assert mean_difference(better, base)["p_value"] < 1e-6


@pytest.mark.parametrize("mean", [0.1, 0.5])
@pytest.mark.parametrize("problems", [30, 90])
def test_it_finds_no_difference_where_there_is_none(problems: int, mean: float):
    rng = np.random.default_rng(problems)
    found = {}
    for samples in (1, 4, 12):
        runs = [rng.binomial(samples, solved) / samples for solved in [rates(rng, (1000, problems), mean, 2.0)] for _ in range(2)]
        results = [mean_difference(one, two) for one, two in zip(*runs, strict=True)]
        found[samples] = np.mean([result["p_value"] < 0.05 for result in results])
        assert found[samples] == np.mean([not result["ci95"][0] <= 0 <= result["ci95"][1] for result in results])
    assert all(share <= 0.06 for share in found.values()), found


def test_the_intervals_of_true_differences_cover_them():
    rng = np.random.default_rng(3)
    solved = rates(rng, (1000, 30), 0.5, 4.0)
    better = solved + 0.2 * solved * (1 - solved)  # by 0.2 of 0.25 · 4 / 5
    pairs = zip(rng.binomial(4, better) / 4, rng.binomial(4, solved) / 4, strict=True)
    covered = [low <= 0.04 <= high for low, high in (mean_difference(*pair)["ci95"] for pair in pairs)]
    assert 0.93 <= np.mean(covered) <= 0.97


def test_two_runs_that_are_all_right_may_differ_elsewhere():
    result = mean_difference(np.ones(30), np.ones(30))
    unseen = wilson_interval(0.0, 30)[1]
    assert result == {"difference": 0.0, "ci95": pytest.approx([-unseen, unseen]), "p_value": 1.0}


def test_all_right_against_all_wrong_is_judged_by_signs():
    result = mean_difference(np.ones(6), np.zeros(6))
    assert result == {"difference": 1.0, "ci95": pytest.approx([1 - 2 * wilson_interval(0.0, 6)[1], 1.0]), "p_value": 1 / 32}


def test_equal_differences_are_equal_however_they_are_rounded():
    assert mean_difference(np.array([5, 8, 11]) / 12, np.array([4, 7, 10]) / 12)["p_value"] == 0.25


def test_paired_runs_need_the_same_problems():
    with pytest.raises(DataError, match="3 with 2 problems"):
        mean_difference([1, 0, 1], [1, 0])


def test_the_error_of_a_mean_over_tokens_by_hand():
    mean, error = mean_a_token([2.0, 9.0], [10.0, 30.0])  # 11 / 40; residuals 2 − 2.75 and 9 − 8.25
    assert mean == pytest.approx(0.275)
    assert error == pytest.approx(np.sqrt(2 * (0.75**2 + 0.75**2)) / 40)


@pytest.mark.parametrize("problems", [20, 64])
def test_where_nothing_rises_a_rise_is_found_in_5_percent(problems: int):
    rng = np.random.default_rng(problems)
    tokens = rng.integers(5, 50, size=(4000, problems)).astype(float)
    sums = tokens * rng.normal(0, 0.2, size=tokens.shape) + rng.normal(0, 1, size=tokens.shape)
    found = np.mean([rise_p_value(*pair) < 0.05 for pair in zip(sums, tokens, strict=True)])
    assert 0.04 <= found <= 0.065, found


def test_a_rise_and_a_fall_are_each_others_complement():
    sums, tokens = np.array([3.0, 1.0, -0.5, 2.0]), np.array([4.0, 5.0, 6.0, 7.0])
    assert rise_p_value(sums, tokens) < 0.5
    assert rise_p_value(-sums, tokens) == pytest.approx(1 - rise_p_value(sums, tokens))


@pytest.mark.parametrize(("rise", "p_value"), [(0.5, 1 / 32), (0.0, 1.0), (-0.5, 1.0)])
def test_equal_rises_are_judged_by_their_sign(rise: float, p_value: float):
    tokens = np.array([4.0, 5.0, 6.0, 7.0, 8.0])
    assert rise_p_value(rise * tokens, tokens) == p_value


def test_holms_correction_by_hand():
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.9}) == pytest.approx({"a": 0.09, "b": 0.04, "c": 0.09, "d": 0.9})
    assert holm({"a": 0.7, "b": 0.6}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_an_interval_over_seeds_by_hand():
    assert seed_interval([0.5, 0.6, 0.4]) == pytest.approx((0.5 - 4.302653 * 0.1 / np.sqrt(3), 0.5 + 4.302653 * 0.1 / np.sqrt(3)), abs=1e-6)
    assert seed_interval([0.99, 0.9, 1.0])[1] == 1.0
