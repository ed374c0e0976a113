"""Average@K and its relatives: values worked out by hand, and the coverage of the bootstrap on simulated evaluations."""

import io
import itertools
import json

import numpy as np
import pytest
from rich.console import Console

from megatron_atesd.errors import DataError
from megatron_atesd.evaluate import average
from megatron_atesd.records import Problem

MATRIX = [[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]  # shares right: 1, 1/4, 0


def test_average_at_k_by_hand():
    assert average.average_at_k(MATRIX) == pytest.approx(5 / 12)


@pytest.mark.parametrize(("draws", "expected"), [(1, 5 / 12), (2, (1 + 1 / 2) / 3), (3, (1 + 3 / 4) / 3), (4, 2 / 3)])
def test_pass_at_by_hand(draws: int, expected: float):
    assert average.pass_at(MATRIX, draws) == pytest.approx(expected)


@pytest.mark.parametrize("draws", [1, 2, 5, 7])
def test_pass_at_equals_counting_every_subset(draws: int):
    row = [1, 0, 0, 1, 0, 0, 0]
    subsets = list(itertools.combinations(row, draws))
    assert average.pass_at([row], draws) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize("draws", [0, 5])
def test_pass_at_refuses_draws_that_were_not_taken(draws: int):
    with pytest.raises(DataError, match="K = 4"):
        average.pass_at(MATRIX, draws)


@pytest.mark.parametrize(("samples", "draws"), [(1, [1]), (4, [1, 2, 4]), (12, [1, 2, 4, 8, 12])])
def test_pass_draws_are_powers_of_two_and_k(samples: int, draws: list[int]):
    assert average.pass_draws(samples) == draws


def test_bootstrap_equals_the_slow_loop():
    values, seed, resamples = np.array([0.1, 0.9, 0.4, 0.2]), 3, 50
    rng = np.random.default_rng(seed)
    slow = [np.mean([values[i] for i in row]) for row in rng.integers(4, size=(resamples, 4))]
    np.testing.assert_allclose(average.bootstrap_means(values, seed, resamples), slow)


def test_bootstrap_in_chunks_gives_every_resample(monkeypatch: pytest.MonkeyPatch):
    whole = average.bootstrap_means([0.1, 0.9, 0.4], seed=1, resamples=100)
    monkeypatch.setattr(average, "_DRAWS_AT_ONCE", 3 * 7)
    np.testing.assert_array_equal(average.bootstrap_means([0.1, 0.9, 0.4], seed=1, resamples=100), whole)


def test_the_interval_has_the_standard_error_of_the_mean():
    rng = np.random.default_rng(0)
    correct = rng.random((400, 4)) < 0.3
    low, high = average.interval(correct)
    standard_error = correct.mean(axis=1).std(ddof=1) / np.sqrt(400)
    assert (high - low) / (2 * 1.96) == pytest.approx(standard_error, rel=0.05)


def test_the_interval_covers_the_truth_95_percent_of_the_time():
    rng = np.random.default_rng(7)
    covered = 0
    for trial in range(500):
        skill = rng.beta(1.0, 2.0, size=60)  # mean 1/3
        low, high = average.interval(rng.random((60, 8)) < skill[:, None], seed=trial, resamples=600)
        covered += low <= 1 / 3 <= high
    assert 0.92 <= covered / 500 <= 0.975


def test_wilson_interval_by_hand():
    assert average.wilson_interval(0.5, 10) == pytest.approx((0.236593, 0.763407), abs=1e-6)
    assert average.wilson_interval(1.0, 10) == pytest.approx((0.722467, 1.0), abs=1e-6)


def test_the_paired_interval_ignores_what_both_runs_share():
    rng = np.random.default_rng(1)
    base = rng.random((200, 4)) < rng.choice([0.05, 0.95], size=(200, 1))
    better = base.copy()
    better[:40, 0] = True
    gain = average.average_at_k(better) - average.average_at_k(base)
    result = average.paired_difference(better, base)
    assert result["difference"] == pytest.approx(gain)
    assert 0 < result["ci95"][0] < gain < result["ci95"][1] < 0.07
    assert result["p_value"] < 0.001


def test_equal_runs_differ_by_nothing():
    assert average.paired_difference(MATRIX, MATRIX) == {"difference": 0.0, "ci95": [0.0, 0.0], "p_value": 1.0}


def test_the_paired_test_rejects_a_true_null_5_percent_of_the_time():
    rng = np.random.default_rng(5)
    rejected = 0
    for trial in range(400):
        skill = rng.random((80, 1))
        pair = rng.random((2, 80, 4)) < skill
        rejected += average.paired_difference(pair[0], pair[1], seed=trial, resamples=500)["p_value"] < 0.05
    assert 0.02 <= rejected / 400 <= 0.085


def test_paired_runs_need_the_same_problems():
    with pytest.raises(DataError, match="3 with 2 problems"):
        average.paired_difference(MATRIX, MATRIX[:2])


def test_summary_by_hand():
    summary = average.summarize(MATRIX, greedy_N=[1, 1, 0], difficulty=["10", "9", "10"])
    assert (summary["problems"], summary["samples"], summary["greedy"]) == (3, 4, pytest.approx(2 / 3))
    assert summary["pass_at"] == {"1": pytest.approx(5 / 12), "2": pytest.approx(0.5), "4": pytest.approx(2 / 3)}
    assert list(summary["by_difficulty"]) == ["9", "10"]  # as numbers
    nine, ten = summary["by_difficulty"]["9"], summary["by_difficulty"]["10"]
    assert (nine["problems"], nine["average_at_k"], nine["greedy"]) == (1, 0.25, 1.0)
    assert nine["ci95"] == pytest.approx(list(average.wilson_interval(0.25, 1)))
    assert (ten["problems"], ten["average_at_k"], ten["ci95"], ten["greedy"]) == (2, 0.5, [0.0, 1.0], 0.5)
    assert ten["greedy_ci95"] == pytest.approx(list(average.wilson_interval(0.5, 2)))


def test_a_summary_is_json_and_reproducible():
    one, two = (average.summarize(np.array(MATRIX), [True, False, True], ["a", "b", "b"], seed=4) for _ in range(2))
    assert json.loads(json.dumps(one)) == two


def test_no_greedy_answers_give_null():
    summary = average.summarize(MATRIX)
    assert (summary["greedy"], summary["greedy_ci95"]) == (None, None)


@pytest.mark.parametrize(("greedy", "difficulty"), [([1, 0], None), (None, ["1", "2"])])
def test_a_summary_refuses_lengths_that_do_not_match(greedy: list[int] | None, difficulty: list[str] | None):
    with pytest.raises(DataError, match="for 3 problems"):
        average.summarize(MATRIX, greedy, difficulty)


@pytest.mark.parametrize("matrix", [[], [[]], [1, 0]])
def test_an_empty_or_flat_matrix_is_refused(matrix: list):
    with pytest.raises(DataError, match="problems, samples"):
        average.summarize(matrix)


def test_difficulty_comes_from_the_metadata():
    problems = [Problem("a", "p", "s", "1", {"operations": 2}), Problem("b", "p", "s", "1", {"operations": 6})]
    assert average.difficulty_of(problems, "operations") == ["2", "6"]


def test_a_problem_without_difficulty_is_named():
    with pytest.raises(DataError, match=r"'b' has no metadata key 'level' .*operations"):
        average.difficulty_of([Problem("a", "p", "s", "1", {"level": 1}), Problem("b", "p", "s", "1", {"operations": 6})], "level")


def test_the_table_shows_percent_by_run_and_difficulty():
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(average.table({"base": average.summarize(MATRIX, None, ["1", "2", "2"])}))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in console.export_text().splitlines() if "│" in line]
    assert [row[:3] + row[4:] for row in rows] == [
        ["base", "3", "41.7", "–", "66.7"],
        ["1", "1", "100.0", "–", ""],
        ["2", "2", "12.5", "–", ""],
    ]


@pytest.mark.parametrize("right", [0, 1])
def test_interval_of_equal_problems_is_not_a_point(right):
    low, high = average.interval(np.full((24, 4), right), seed=1)
    assert (low, high) == pytest.approx(average.wilson_interval(float(right), 24))
    assert high - low > 0.1
