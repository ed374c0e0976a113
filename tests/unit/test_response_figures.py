"""Figures of responses, by hand."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from megatron_atesd.evaluate.average import summarize
from megatron_atesd.evaluate.response_figures import response_figures, sampled_of
from megatron_atesd.evaluate.responses import Answered
from megatron_atesd.evaluate.tables import pass_line, response_table
from megatron_atesd.evaluate.uncertainty import mean_interval

RIGHT = [[1, 0], [0, 0], [1, 1]]
ANSWERED = [
    Answered(0, 0, r"\boxed{1}", 10, False, False),
    Answered(0, 1, r"\boxed{}", 20, False, False),
    Answered(1, 0, r"\boxed{3}", 90, True, True),
    Answered(1, 1, "never", 90, True, False),
    Answered(2, 0, r"\boxed{1}", 30, False, False),
    Answered(2, 1, r"\boxed{1}", 40, False, False),
]
VOTES = np.array([1.0, 0.0, 1.0])
SAMPLED = sampled_of(ANSWERED, VOTES)


def test_shares_and_their_intervals_by_hand() -> None:
    figures = response_figures(RIGHT, SAMPLED)
    by_problem = {"majority_at_k": [1, 0, 1], "with_answer": [0.5, 0.5, 1], "truncated": [0, 1, 0], "loops": [0, 0.5, 0]}
    for name, values in by_problem.items():
        assert figures[name] == pytest.approx(np.mean(values)), name
        assert figures[f"{name}_ci95"] == pytest.approx(mean_interval(values)), name


def test_lengths_by_hand() -> None:
    figures = response_figures(RIGHT, SAMPLED)
    assert figures["tokens"] == {"mean": pytest.approx(280 / 6), "p10": 15.0, "p50": 35.0, "p90": 90.0, "max": 90.0}
    assert figures["mean_tokens"] == figures["tokens"]["mean"]
    assert [figures["tokens_right"][name] for name in ("mean", "p50", "max")] == pytest.approx([80 / 3, 30, 40])
    assert [figures["tokens_wrong"][name] for name in ("mean", "p50", "max")] == pytest.approx([200 / 3, 90, 90])


def test_there_are_no_lengths_of_responses_that_there_are_not() -> None:
    assert response_figures(np.zeros((3, 2)), SAMPLED)["tokens_right"] is None
    assert response_figures(np.ones((3, 2)), SAMPLED)["tokens_wrong"] is None


def test_responses_made_before_loops_were_kept_give_null() -> None:
    old = [replace(a, loop=None) if a.problem == 1 else a for a in ANSWERED]
    figures = response_figures(RIGHT, sampled_of(old, VOTES))
    assert (figures["loops"], figures["loops_ci95"]) == (None, None)
    assert summarize(RIGHT, None, ["a", "a", "b"], sampled_of(old, VOTES))["by_difficulty"]["b"]["loops"] is None


def test_each_difficulty_has_the_figures_of_its_problems() -> None:
    whole = summarize(RIGHT, [1, 0, 1], ["a", "b", "a"], SAMPLED)
    rows = [a for a in ANSWERED if a.problem != 1]
    alone = summarize([RIGHT[0], RIGHT[2]], [1, 1], None, sampled_of(rows, VOTES[[0, 2]]))
    shared = alone.keys() - {"samples", "by_difficulty"}
    assert whole["by_difficulty"]["a"] == {name: alone[name] for name in shared}
    assert shared >= {"majority_at_k", "tokens_right", "loops_ci95", "pass_at"}
    assert json.loads(json.dumps(whole)) == whole


def test_without_the_responses_a_summary_has_only_what_is_right() -> None:
    assert "tokens" not in summarize(RIGHT)


def test_the_table_shows_shares_in_percent_and_lengths_in_tokens() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    summary = summarize(RIGHT, None, ["a", "b", "a"], SAMPLED)
    console.print(response_table({"base": summary}))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in console.export_text().splitlines() if "│" in line]
    assert rows[0] == ["base", "66.7", "33.3", "16.7", "47", "15", "35", "90", "90", "27", "67"]
    assert rows[2] == ["b", "50.0", "100.0", "50.0", "90", "90", "90", "90", "90", "–", "90"]
    assert pass_line(summary) == "pass@j: 1: 50.0, 2: 66.7"
