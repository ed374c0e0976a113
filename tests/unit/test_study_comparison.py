"""The arithmetic of a study's table, against slow and obvious ways, and how often its intervals are right."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_atesd.errors import DataError
from megatron_atesd.study import comparison
from megatron_atesd.study.tables import console_tables, into_readme, markdown

LABELS = ("2", "3")


def run(arm: str, base: str, seed: int, sampled: float, task: str = "late", **more: Any) -> dict[str, Any]:
    parts = {"2": sampled, "3": sampled / 2}
    figures = {
        "task": task,
        "base": base,
        "arm": arm,
        "seed": seed,
        "problems": 10,
        "sampled": sampled,
        "greedy": sampled,
        "by_difficulty": parts,
    }
    costs = {"rollout_tokens": 1000, "seconds": 36.0, "alpha": [1.0, 0.5], "signals": {}, "first_kl": 0.1, "git": "abc"}
    return figures | costs | more


def results(runs: list[dict[str, Any]], unit: str = "base") -> dict[str, Any]:
    arms = list(dict.fromkeys(each["arm"] for each in runs))
    return {
        "arms": {arm: {"mode": "fixed", "alpha": 1.0} for arm in arms},
        "tasks": list(dict.fromkeys(each["task"] for each in runs)),
        "bases": list(dict.fromkeys(each["base"] for each in runs)),
        "seeds": [1, 2],
        "fixed": [arm for arm in arms if arm.startswith("fixed")],
        "references": ["full"],
        "unit": unit,
        "update": 100,
        "samples": 4,
        "planned": len(runs),
        "before": [],
        "runs": runs,
        "checks": [],
    }


FULL = {("A", 1): 0.4, ("A", 2): 0.5, ("B", 1): 0.6, ("B", 2): 0.7, ("C", 1): 0.3, ("C", 2): 0.5}
OURS = {("A", 1): 0.5, ("A", 2): 0.7, ("B", 1): 0.7, ("B", 2): 0.6, ("C", 1): 0.6, ("C", 2): 0.6}


def two_arms(unit: str) -> dict[str, Any]:
    return results([run(arm, *key, value) for arm, values in (("full", FULL), ("ours", OURS)) for key, value in values.items()], unit)


def test_an_observation_is_a_base_and_the_mean_of_its_seeds():
    row = comparison.compare(two_arms("base"))["late"]["arms"]["ours"]
    means = [0.6, 0.65, 0.6]
    assert row["mean"] == pytest.approx(np.mean(means))
    assert row["error"] == pytest.approx(np.std(means, ddof=1) / np.sqrt(3))
    found = row["differences"]["full"]
    spread = np.std(differences := [0.15, 0.0, 0.2], ddof=1) / np.sqrt(3)
    assert (found["difference"], found["units"], found["runs"]) == (pytest.approx(np.mean(differences)), 3, 6)
    assert found["ci95"] == pytest.approx([np.mean(differences) - 4.302653 * spread, np.mean(differences) + 4.302653 * spread], abs=1e-5)


def test_or_each_run_where_the_study_says_so():
    found = comparison.compare(two_arms("run"))["late"]["arms"]["ours"]["differences"]["full"]
    differences = [OURS[key] - FULL[key] for key in FULL]
    spread = np.std(differences, ddof=1) / np.sqrt(6)
    assert found["units"] == 6
    assert found["ci95"] == pytest.approx([np.mean(differences) - 2.570582 * spread, np.mean(differences) + 2.570582 * spread], abs=1e-5)


def test_only_runs_that_both_arms_have_are_paired():
    runs = [each for each in two_arms("base")["runs"] if (each["arm"], each["base"]) != ("full", "C")]
    found = comparison.compare(results(runs))["late"]["arms"]["ours"]["differences"]["full"]
    assert (found["difference"], found["units"]) == (pytest.approx(np.mean([0.15, 0.0])), 2)


def test_one_base_has_a_difference_and_no_interval():
    runs = [each for each in two_arms("base")["runs"] if each["base"] == "A"]
    row = comparison.compare(results(runs))["late"]["arms"]["ours"]
    assert row["error"] is None
    assert row["differences"]["full"] == {"difference": pytest.approx(0.15), "ci95": None, "p_value": None, "units": 1, "runs": 2}


def test_the_best_fixed_exposure_is_that_of_the_task():
    values = {"late": (0.7, 0.5), "det": (0.5, 0.7)}
    runs = [run(f"fixed-{i}", "A", 1, value, task) for task, pair in values.items() for i, value in enumerate(pair)]
    found = comparison.compare(results(runs))
    assert {task: part["references"][comparison.BEST] for task, part in found.items()} == {"late": "fixed-0", "det": "fixed-1"}


def test_the_best_fixed_exposure_is_chosen_from_bases_that_all_have():
    values = {("fixed-0", "A"): 0.5, ("fixed-0", "B"): 0.9, ("fixed-1", "A"): 0.6}  # fixed-1 has not seen B, on which all are good
    found = comparison.compare(results([run(arm, base, 1, value) for (arm, base), value in values.items()]))
    assert found["late"]["references"][comparison.BEST] == "fixed-1"


def test_a_difficulty_that_a_base_has_no_problems_of_is_a_mean_of_the_others():
    runs = [run("full", "A", 1, 0.4), run("full", "B", 1, 0.6, by_difficulty={"2": 0.6, "4": 0.1})]
    parts = comparison.compare(results(runs))["late"]["arms"]["full"]["by_difficulty"]
    assert {label: part["mean"] for label, part in parts.items()} == {"2": 0.5, "3": 0.2, "4": 0.1}


def test_intervals_of_all_arms_hold_together_where_bases_differ_in_what_suits_them():
    rng, seeds, bases, arms, held = np.random.default_rng(1), (1, 2, 3), "ABCDE", ("full", "a", "b", "c"), []
    for _ in range(400):
        taste = {(arm, base): rng.normal(0, 0.05) for arm in arms for base in bases}  # no arm is better over all bases
        runs = [run(arm, base, s, 0.5 + taste[arm, base] + rng.normal(0, 0.03)) for arm in arms for base in bases for s in seeds]
        rows = comparison.compare(results(runs))["late"]["arms"]
        intervals = [rows[arm]["differences"]["full"]["ci95"] for arm in arms[1:]]
        held.append(all(low <= 0 <= high for low, high in intervals))
    assert 0.93 <= np.mean(held) <= 0.99, np.mean(held)


def test_signals_are_compared_within_base_and_seed():
    offsets = {("A", 1): 3.0, ("B", 1): -5.0}  # of the signal and of accuracy, in opposite directions
    runs = [
        run(arm, *key, 0.5 - offset / 100 + step / 100, signals={"probe/nll": offset + step})
        for key, offset in offsets.items()
        for arm, step in (("full", 0.0), ("ours", 1.0))
    ]
    points = comparison.signal_points(results(runs), "probe/nll")["late"]
    np.testing.assert_allclose(points, [[-0.5, -0.005], [0.5, 0.005]] * 2, atol=1e-12)


def test_both_tables_have_the_same_cells():
    found = two_arms("base")
    compared = comparison.compare(found)
    (table,) = console_tables(found, compared)
    lines = markdown(found, compared).splitlines()
    row = next(line for line in lines if line.startswith("| ours"))
    assert [cell.strip("* ") for cell in row.strip("| ").split(" | ")] == [str(list(column.cells)[1]) for column in table.columns]
    assert "61.7 ± 1.7" in row
    assert "+11.7 (-14.2 … +37.5)" in row


def test_a_difference_whose_interval_leaves_zero_out_is_bold():
    steps = {"A": 0.3, "B": 0.31, "C": 0.32, "D": 0.33}
    runs = [run(arm, base, 1, 0.3 + (arm == "ours") * step) for base, step in steps.items() for arm in ("full", "ours")]
    text = markdown(found := results(runs), comparison.compare(found))
    assert "| **+31.5 (+29.4 … +33.6)** |" in text


def test_other_numbers_of_rollout_tokens_are_said():
    runs = [run("full", "A", 1, 0.5), run("ours", "A", 1, 0.5, rollout_tokens=1100)]
    text = markdown(found := results(runs), comparison.compare(found))
    assert "Rollout tokens differ between arms in late" in text


def test_tables_go_between_the_marks_of_a_readme(tmp_path: Path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- study -->\nold\n<!-- /study -->\nafter\n")
    into_readme(readme, "new\n", [])
    assert readme.read_text() == "before\n<!-- study -->\nnew\n<!-- /study -->\nafter\n"


def test_the_second_mark_may_end_the_readme_and_the_pictures_lie_beside_it_already(tmp_path: Path):
    readme, picture = tmp_path / "README.md", tmp_path / "picture.png"
    readme.write_text("<!-- study -->\n<!-- /study -->")
    picture.write_bytes(b"drawn")
    into_readme(readme, "new\n", [picture])
    assert (readme.read_text(), picture.read_bytes()) == ("<!-- study -->\nnew\n<!-- /study -->", b"drawn")


def test_a_readme_that_is_no_text_is_refused(tmp_path: Path):
    (tmp_path / "README.md").write_bytes(b"\xff<!-- study -->\n<!-- /study -->\n")
    with pytest.raises(DataError, match=r"README\.md cannot be used"):
        into_readme(tmp_path / "README.md", "new\n", [])


def test_a_readme_without_marks_is_refused(tmp_path: Path):
    (tmp_path / "README.md").write_text("no marks\n")
    with pytest.raises(DataError, match="lacks the lines <!-- study -->"):
        into_readme(tmp_path / "README.md", "new\n", [])
