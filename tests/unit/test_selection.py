"""The checkpoint that a run ends with: chosen by the declared rule alone, and told with what is known and not known of it."""

from typing import Any

import pytest

from megatron_atesd.config import EvalConfig
from megatron_atesd.train.selection import choose_best, evaluation_line, final_lines, summary

BEST = EvalConfig(files=["math.jsonl", "aime.jsonl"], select="best", select_on="math")
LAST = EvalConfig(files=["math.jsonl", "aime.jsonl"])


def figures(average: float) -> dict[str, Any]:
    return {"average_at_k": average, "ci95": [average - 0.1, average + 0.1]}


def results(*math: float) -> dict[int, dict[str, Any]]:
    """Evaluations at steps 0, 10, 20, …; on aime a tenth of what there is on math."""
    return {10 * i: {"math": figures(value), "aime": figures(value / 10)} for i, value in enumerate(math)}


def best_step(*math: float, checkpoints: range = range(0, 100, 10)) -> int | None:
    best = choose_best(results(*math), checkpoints, BEST)
    return best.step if best else None


@pytest.mark.parametrize(
    ("math", "step"),
    [
        ((0.1, 0.2, 0.5, 0.3), 20),
        ((0.1, 0.5, 0.5), 10),  # the earlier one of equals
        ((0.9, 0.2, 0.3), 20),  # the start model is no checkpoint of the run
        ((0.9,), None),
    ],
)
def test_the_highest_of_the_checkpoints(math: tuple[float, ...], step: int | None) -> None:
    assert best_step(*math) == step


def test_only_the_named_file_selects() -> None:
    mixed = {10: {"math": figures(0.5), "aime": figures(0.1)}, 20: {"math": figures(0.4), "aime": figures(0.9)}}
    best = choose_best(mixed, (10, 20), BEST)
    assert best is not None
    assert (best.step, best.file, best.score, best.ci95, best.candidates) == (10, "math", 0.5, (0.4, 0.6), 2)


def test_a_higher_one_without_a_checkpoint_is_named() -> None:
    best = choose_best(results(0.1, 0.8, 0.5, 0.4), (20, 30), BEST)
    assert best is not None
    assert (best.step, best.candidates, best.without_checkpoint) == (20, 3, (10,))
    assert any("have no checkpoint: step_10" in line for line in final_lines(results(0.1, 0.8, 0.5, 0.4), 30, best, BEST))


def test_with_last_nothing_is_said_of_a_best() -> None:
    found = results(0.1, 0.8, 0.5)
    said = "\n".join(final_lines(found, 20, None, LAST))
    assert said.splitlines() == [
        "Average@4 with its 95 % interval, after update 20:",
        "  math 50.0 % (40.0 – 60.0), before training 10.0 % (0.0 – 20.0)",
        "  aime 5.0 % (0.0 – 15.0), before training 1.0 % (0.0 – 11.0)",
        "result by eval.select last: step_20",
    ]
    assert "best" not in said + repr(summary(found, 20, None, LAST))


def test_with_best_both_ends_stand_side_by_side_and_the_bias_is_told() -> None:
    found = results(0.1, 0.8, 0.5)
    assert list(final_lines(found, 20, choose_best(found, (10, 20), BEST), BEST))[3:] == [
        "result by eval.select best: step_10, the checkpoint with the highest Average@4 on math, the earlier one of equals; "
        "2 were evaluated",
        "  math: step_10 80.0 % (70.0 – 90.0), step_20 50.0 % (40.0 – 60.0) (selected on this file: biased upward, as the highest of 2)",
        "  aime: step_10 8.0 % (0.0 – 18.0), step_20 5.0 % (0.0 – 15.0)",
    ]


def test_a_start_model_that_no_checkpoint_is_above_is_told() -> None:
    found = results(0.9, 0.2, 0.3)
    assert any(
        "no checkpoint is above the start model on math" in line for line in final_lines(found, 20, choose_best(found, (20,), BEST), BEST)
    )


def test_the_summary_has_both_ends_and_the_number_of_candidates() -> None:
    found = results(0.1, 0.8, 0.5)
    told = summary(found, 20, choose_best(found, (10, 20), BEST), BEST)
    assert (told["select"], told["best"]["step"], told["best"]["candidates"], told["last_step"]) == ("best", 10, 2, 20)
    assert (told["at_best"]["aime"]["average_at_k"], told["at_last"]["aime"]["average_at_k"]) == (0.08, 0.05)
    assert [told["curves"]["math"][step]["average_at_k"] for step in ("0", "10", "20")] == [0.1, 0.8, 0.5]


def test_the_line_of_an_evaluation() -> None:
    assert evaluation_line(10, results(0, 0.5)[10]) == "evaluation after update 10: math 50.0 % (40.0 – 60.0), aime 5.0 % (0.0 – 15.0)"
