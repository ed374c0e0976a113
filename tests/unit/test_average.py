"""Average@K and its relatives: values worked out by hand. Their intervals are in test_uncertainty.py."""

import io
import itertools
import json

import numpy as np
import pytest
from rich.console import Console

from megatron_atesd.errors import DataError
from megatron_atesd.evaluate import average
from megatron_atesd.evaluate.tables import table
from megatron_atesd.evaluate.uncertainty import mean_difference, mean_interval
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


def test_the_interval_is_that_of_the_problems_shares():
    assert average.interval(MATRIX) == pytest.approx(mean_interval([1, 1 / 4, 0]))


def test_the_paired_difference_is_that_of_the_problems_shares():
    other = [[1, 0], [0, 0], [1, 1]]
    assert average.paired_difference(MATRIX, other) == mean_difference([1, 1 / 4, 0], [1 / 2, 0, 1])


def test_paired_runs_need_the_same_problems():
    with pytest.raises(DataError, match="3 with 2 problems"):
        average.paired_difference(MATRIX, MATRIX[:2])


def test_summary_by_hand():
    summary = average.summarize(MATRIX, greedy_N=[1, 1, 0], difficulty=["10", "9", "10"])
    assert (summary["problems"], summary["samples"], summary["greedy"]) == (3, 4, pytest.approx(2 / 3))
    assert summary["pass_at"] == {str(j): pytest.approx(share) for j, share in {1: 5 / 12, 2: 0.5, 3: 7 / 12, 4: 2 / 3}.items()}
    assert list(summary["by_difficulty"]) == ["9", "10"]  # as numbers
    nine, ten = summary["by_difficulty"]["9"], summary["by_difficulty"]["10"]
    assert (nine["problems"], nine["average_at_k"], nine["greedy"]) == (1, 0.25, 1.0)
    assert (ten["problems"], ten["average_at_k"], ten["greedy"]) == (2, 0.5, 0.5)


def test_every_interval_of_a_summary_is_of_one_kind():
    summary = average.summarize(MATRIX, greedy_N=[1, 1, 0], difficulty=["10", "9", "10"])
    ten = summary["by_difficulty"]["10"]
    expected = {"ci95": [1, 1 / 4, 0], "greedy_ci95": [1, 1, 0]}
    assert {name: summary[name] for name in expected} == {name: pytest.approx(mean_interval(values)) for name, values in expected.items()}
    assert summary["pass_at_ci95"] == {
        "1": pytest.approx(mean_interval([1, 1 / 4, 0])),
        "2": pytest.approx(mean_interval([1, 1 / 2, 0])),
        "3": pytest.approx(mean_interval([1, 3 / 4, 0])),
        "4": pytest.approx(mean_interval([1, 1, 0])),
    }
    assert ten["pass_at_ci95"]["3"] == pytest.approx(mean_interval([1, 0]))
    assert (ten["ci95"], ten["greedy_ci95"]) == (pytest.approx(mean_interval([1, 0])), pytest.approx(mean_interval([1, 0])))


def test_a_summary_is_json():
    summary = average.summarize(np.array(MATRIX), [True, False, True], ["a", "b", "b"])
    assert json.loads(json.dumps(summary)) == summary


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
    console.print(table({"base": average.summarize(MATRIX, None, ["1", "2", "2"])}))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in console.export_text().splitlines() if "│" in line]
    assert [row[:3] + row[4:] for row in rows] == [
        ["base", "3", "41.7", "–", "66.7", "–"],
        ["1", "1", "100.0", "–", "100.0", "–"],
        ["2", "2", "12.5", "–", "50.0", "–"],
    ]
