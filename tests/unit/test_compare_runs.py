"""Evaluations compared with each other: differences, corrections, seeds, and what is refused."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.intervals import difficulties, false_alarms
from megatron_atesd.errors import DataError
from megatron_atesd.evaluate.comparison import compare
from megatron_atesd.evaluate.finished import Finished, read_finished
from megatron_atesd.evaluate.responses import Answered, finish
from megatron_atesd.evaluate.uncertainty import detectable_difference, mean_difference, mean_interval, seed_spread, t_quantile

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"--model": "m", "what is in --model": "f", "the problems in --data": "d", "--samples": 4, "--seed": 1, "--temperature": 1.0}
SUMMARY = {"seed": 1, "greedy": 0.5, "majority_at_k": 0.25, "with_answer": 1.0, "truncated": 0.0, "loops": None, "mean_tokens": 9.0}


def run(name: str, counts: list[int], **settings: Any) -> Finished:
    """Of problems p0, p1, … so many of 4 samples are right."""
    correct = np.array([[sample < count for sample in range(4)] for count in counts])
    ids = tuple(f"p{place}" for place in range(len(counts)))
    return Finished(Path(name), ids, correct, SUMMARY, SETTINGS | {"what is in --model": name} | settings)


BASE, BETTER = run("base", [0, 1, 2, 3, 4, 0]), run("better", [2, 3, 4, 4, 4, 3])
NOISY = run("noisy", [1, 0, 3, 2, 4, 1])
ALL = {"base": [BASE], "better": [BETTER], "noisy": [NOISY]}


def test_one_arm_is_compared_by_the_paired_test() -> None:
    found = compare({"base": [BASE], "better": [BETTER]})
    entry = found["differences"]["better"]
    assert {name: entry[name] for name in ("difference", "ci95", "p_value")} == mean_difference(BETTER.shares_N, BASE.shares_N)
    assert (entry["p_value_corrected"], found["comparisons"], found["problems"]) == (entry["p_value"], 1, 6)
    assert json.loads(json.dumps(found)) == found


def test_with_several_arms_p_values_are_holms_and_intervals_hold_together() -> None:
    found = compare(ALL)["differences"]
    alone = {name: mean_difference(ALL[name][0].shares_N, BASE.shares_N)["p_value"] for name in ("better", "noisy")}
    assert {name: entry["p_value"] for name, entry in found.items()} == alone
    assert found["better"]["p_value_corrected"] == pytest.approx(2 * alone["better"])  # the smaller one
    assert found["noisy"]["p_value_corrected"] == pytest.approx(alone["noisy"])
    assert found["better"]["ci95"] == mean_difference(BETTER.shares_N, BASE.shares_N, comparisons=2)["ci95"]


def test_a_corrected_p_value_is_never_below_a_smaller_ones() -> None:
    near = {"a": run("a", [1, 2, 3, 3, 4, 1]), "b": run("b", [1, 2, 3, 4, 4, 0])}
    found = compare({"base": [BASE], **{name: [one] for name, one in near.items()}})["differences"]
    small, large = sorted(found.values(), key=lambda entry: entry["p_value"])
    assert 2 * small["p_value"] > large["p_value"]
    assert small["p_value_corrected"] == pytest.approx(2 * small["p_value"])
    assert large["p_value_corrected"] == small["p_value_corrected"]


def test_sentences_say_what_a_difference_is_worth() -> None:
    found = compare(ALL)["differences"]
    low, high = (f"{100 * end:+.1f}" for end in found["better"]["ci95"])
    p_value = f"p = {found['better']['p_value_corrected']:.2g} (Holm, 2 comparisons)"
    assert (
        found["better"]["sentence"]
        == f"better is 41.7 points above base; the interval {low} … {high} excludes 0: more than noise, {p_value}"
    )
    assert not found["better"]["within_noise"]
    said = found["noisy"]["sentence"]
    assert said.startswith("noisy is 4.2 points above base; the interval −")
    assert " includes 0: within noise, p = " in said
    assert f"; a true difference of {100 * found['noisy']['detectable']:.1f} points would be found in 4 of 5 such comparisons" in said
    assert "is 4.2 points below noisy" in compare({"noisy": [NOISY], "base": [BASE]})["differences"]["base"]["sentence"]


def test_equal_means_are_level() -> None:
    level = compare({"base": [BASE], "other": [run("other", [4, 3, 2, 1, 0, 0])]})["differences"]["other"]
    assert level["sentence"].startswith("other is level with base; the interval −")


def test_what_holm_finds_beyond_the_wider_interval_is_said() -> None:
    rng = np.random.default_rng(0)
    base = rng.binomial(4, 0.5, 60)
    arms = {"base": [run("base", base.tolist())], "clear": [run("clear", np.minimum(4, base + 1).tolist())]}
    for more in range(4, 30):
        some = np.where(np.arange(60) < more, np.minimum(4, base + 1), np.where(np.arange(60) > 54, np.maximum(0, base - 1), base))
        entry = compare(arms | {"some": [run("some", some.tolist())]})["differences"]["some"]
        if not entry["within_noise"]:
            break
    assert entry["ci95"][0] <= 0 < entry["p_value_corrected"] < 0.05
    assert ": " not in entry["sentence"]
    assert "more than noise" in entry["sentence"]
    assert "wider for 2 comparisons, includes 0" in entry["sentence"]


def seeds(name: str, *counts: list[int]) -> list[Finished]:
    return [run(f"{name}{place}", these) for place, these in enumerate(counts)]


ONE, TWO = seeds("one", [0, 1, 2, 3], [1, 1, 2, 4], [0, 0, 1, 3]), seeds("two", [2, 3, 4, 4], [1, 2, 2, 3], [3, 3, 4, 4])


def test_runs_of_an_arm_are_averaged_and_their_seeds_counted_in() -> None:
    found = compare({"one": ONE, "two": TWO})
    entry = found["differences"]["two"]
    first, second = (np.mean([one.shares_N for one in arm], axis=0) for arm in (ONE, TWO))
    spreads = [np.var([one.shares_N.mean() for one in arm], ddof=1) / 3 for arm in (ONE, TWO)]
    parts = [(np.var(second - first, ddof=1) / 4, 3), (spreads[0], 2), (spreads[1], 2)]
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / free for part, free in parts)
    assert freedom % 1 > 0.1  # rounded down, so this is worth a look
    reach = t_quantile(int(freedom)) * np.sqrt(variance)
    assert entry["difference"] == pytest.approx(np.mean(second - first))
    assert entry["ci95"] == pytest.approx([np.mean(second - first) - reach, np.mean(second - first) + reach])
    assert (entry["seeds_of"], found["notes"]) == (["one", "two"], [])


def test_an_arms_interval_over_seeds_is_students() -> None:
    arm = compare({"one": ONE, "two": TWO})["arms"]["one"]
    means = np.array([6 / 16, 8 / 16, 4 / 16])
    reach = 4.302653 * means.std(ddof=1) / np.sqrt(3)
    assert arm["ci95_seeds"] == pytest.approx([max(0, 6 / 16 - reach), 6 / 16 + reach], abs=1e-6)
    assert arm["ci95"] == pytest.approx(mean_interval(np.mean([one.shares_N for one in ONE], axis=0)))
    assert [told["average_at_k"] for told in arm["runs"]] == pytest.approx(means)


def test_with_two_runs_the_spread_over_seeds_is_not_judged() -> None:
    found = compare({"one": ONE[:2], "two": TWO})
    assert found["differences"]["two"]["seeds_of"] == ["two"]
    assert found["arms"]["one"]["ci95_seeds"] is None
    assert found["notes"][0].startswith("the spread over seeds cannot be judged with fewer than 3 runs of an arm: one (2); ")


def test_one_model_sampled_with_several_seeds_is_told_apart_from_several_trainings() -> None:
    sampled = [replace(one, settings=one.settings | {"what is in --model": "same", "--seed": place}) for place, one in enumerate(ONE)]
    notes = compare({"one": sampled, "two": TWO})["notes"]
    assert notes == [
        "the 3 runs of one are one model, sampled with several seeds: other training seeds are not counted in",
    ]


def test_a_figure_that_a_run_does_not_have_is_null() -> None:
    arm = compare(ALL)["arms"]["better"]
    assert (arm["greedy"], arm["majority_at_k"], arm["loops"]) == (0.5, 0.25, None)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (replace(run("x", [1, 2]), ids=("p0", "p1")), "lacks 4, such as 'p2'"),
        (replace(BETTER, ids=("p0", "p1", "p2", "p3", "p4", "q")), "lacks 1, such as 'p5' and the first alone has 1, such as 'q'"),
        (replace(BETTER, ids=("p1", "p0", "p2", "p3", "p4", "p5")), "their order differs; evaluate both on one file"),
        (
            replace(BETTER, settings=BETTER.settings | {"the problems in --data": "e"}),
            "have problems of the same ids but other texts",
        ),
        (replace(BASE, folder=Path("copy")), "copy and base are the same evaluation: of one model, with one seed; give each once"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(other: Finished, says: str) -> None:
    with pytest.raises(DataError) as error:
        compare({"base": [BASE], "other": [other]})
    assert says in str(error.value)
    assert str(error.value).startswith(f"{other.folder} and base ")


def test_sampling_that_differs_is_told() -> None:
    found = compare(
        {"base": [BASE], "other": [run("other", [1, 1, 1, 1, 1, 1], **{"--temperature": 0.6, "--seed": 9, "lora.start": "adapters"})]}
    )
    assert found["warnings"] == [
        "other (other) was sampled otherwise than base (base): --temperature is 0.6, there 1.0; a difference may come from that"
    ]
    assert compare(ALL)["warnings"] == []


def test_a_run_that_does_not_say_how_it_was_made_is_told() -> None:
    found = compare({"base": [BASE], "old": [replace(BETTER, settings={})]})
    assert found["warnings"] == [
        "better does not say how its responses were made; whether old is sampled as the others are cannot be checked"
    ]


def test_a_detectable_difference_is_found_in_4_of_5_comparisons() -> None:
    rng = np.random.default_rng(1)
    base = rng.uniform(0.3, 0.5, (2000, 40))
    true = detectable_difference(base[0] + 0.1 * rng.standard_normal(40), base[0])
    assert true is not None
    shift = (t_quantile(39) + t_quantile(39, 0.4)) * 0.1 / np.sqrt(40)
    others = base + shift + 0.1 * rng.standard_normal(base.shape)
    found = np.mean([mean_difference(other, one)["p_value"] < 0.05 for other, one in zip(others, base, strict=True)])
    assert found == pytest.approx(0.8, abs=0.03)
    assert true == pytest.approx(shift, rel=0.4)  # from a sample's own spread


def test_more_comparisons_and_seeds_need_a_larger_difference() -> None:
    pair, spread = (BETTER.shares_N, BASE.shares_N), seed_spread([0.2, 0.4, 0.3])
    alone, among, over_seeds = detectable_difference(*pair), detectable_difference(*pair, 3), detectable_difference(*pair, 1, [spread])
    assert alone is not None
    assert among is not None
    assert over_seeds is not None
    assert alone < min(among, over_seeds)
    assert detectable_difference(np.ones(5), np.ones(5)) is None


@pytest.mark.slow
@pytest.mark.parametrize("arms", [2, 3])
@pytest.mark.parametrize(("share", "name"), [(0.1, "0 or 0.4"), (0.5, "Beta, a + b = 1")])
def test_equal_arms_are_called_different_in_at_most_6_percent(share: float, name: str, arms: int) -> None:
    found = false_alarms(difficulties(share)[name], arms, 1, 0.0, 30, 4, 4000, seed=arms)
    assert 0.01 <= found <= 0.06


@pytest.mark.slow
@pytest.mark.parametrize("moved", [0.0, 1.0])
def test_arms_of_three_runs_whose_seeds_differ_are_called_different_in_at_most_6_percent(moved: float) -> None:
    assert false_alarms(difficulties(0.5)["Beta, a + b = 3"], 2, 3, moved, 30, 4, 1000, seed=3) <= 0.06


def save(folder: Path, run: Finished) -> Path:
    """As an evaluation leaves it, greedy responses included."""
    folder.mkdir()
    problems: Any = [SimpleNamespace(id=name) for name in run.ids]
    answered = [Answered(p, s, "a line\u2028and\x85more", 1, False, False) for p in range(len(problems)) for s in range(-1, 4)]
    right = [bool(s >= 0 and run.correct_NK[p, s]) for p in range(len(problems)) for s in range(-1, 4)]
    finish(folder, answered, right, problems, run.summary)
    (folder / "settings.json").write_text(json.dumps(run.settings))
    return folder


def test_a_finished_folder_is_read_back(tmp_path: Path) -> None:
    found = read_finished(save(tmp_path / "a", BETTER))
    assert (found.ids, found.summary, found.settings) == (BETTER.ids, BETTER.summary, BETTER.settings)
    assert np.array_equal(found.correct_NK, BETTER.correct_NK)


def tool(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, words)])
    runpy.run_path(str(ROOT / "tools" / "compare.py"), run_name="__main__")


def test_the_command_tells_and_writes_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [save(tmp_path / run.folder.name, run) for run in (BASE, BETTER)]
    tool(monkeypatch, f"base={folders[0]}", folders[1], "--out", tmp_path / "c.json")
    written = json.loads((tmp_path / "c.json").read_text())
    said = capsys.readouterr().out
    assert list(written["arms"]) == ["base", str(folders[1])]
    assert written["differences"][str(folders[1])]["sentence"] in said.splitlines()
    assert f"note: {written['notes'][0]}" in said.splitlines()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["a=base"], "a=base is one evaluation, and nothing to compare it with: give two or more, the baseline first"),
        (["a=base", "a=better"], "the arm a is given twice; give all its folders at once, NAME=DIR,DIR, or another name"),
        (["a=", "base"], "a= names no arm and folder: write NAME=DIR or NAME=DIR,DIR"),
        (["base", "none"], "none has no evaluation.json: give the --out of a tools/evaluate.py that has come to its end"),
        (["base", "torn"], "torn/responses.jsonl is not what tools/evaluate.py wrote (KeyError('right')): run it once more"),
        (["base", "broken"], "broken cannot be read ("),
        (["base", "better", "--out", "no/c.json"], "--out is no/c.json, which cannot be written to (No such file or directory);"),
    ],
)
def test_the_command_refuses_in_one_line(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, run in {"base": BASE, "better": BETTER, "torn": BASE, "broken": BASE}.items():
        save(tmp_path / name, run)
    Path("torn/responses.jsonl").write_text('{"id": "p0", "sample": 0}\n')
    Path("broken/evaluation.json").write_text("{")
    with pytest.raises(SystemExit) as end:
        tool(monkeypatch, *words)
    error = capsys.readouterr().err
    assert (end.value.code, len(error.splitlines())) == (2, 1)
    assert error.startswith(f"error: {says}")


def test_signs_in_a_folders_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "lr=1,2", BASE)
    save(tmp_path / "better", BETTER)
    tool(monkeypatch, "lr=1,2", "better")
    assert "better is 41.7 points above lr=1,2; " in capsys.readouterr().out
