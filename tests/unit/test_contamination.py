"""The contamination report: what counts as the same, against a slow search, and what is printed."""

import json
import random
from pathlib import Path

import pytest

from megatron_atesd.data.contamination import Suspect, find_overlap
from megatron_atesd.data.contamination_report import as_text, verdict
from megatron_atesd.data.overlap import whole, words
from megatron_atesd.data.problems import save_problems
from megatron_atesd.records import Problem
from tests.support.bad_input import refusal
from tests.unit.test_prepare_data import run

LONG = "Find the number of ways to place three rooks on a board with eight rows so that none attacks another."


def save(path: Path, *texts: str | tuple[str, str]) -> Path:
    pairs = [(text, "It is \\boxed{1}.") if isinstance(text, str) else text for text in texts]
    save_problems([Problem(f"{path.stem}-{n}", problem, solution, "1") for n, (problem, solution) in enumerate(pairs, 1)], path)
    return path


def suspects(folder: Path, train: list[str | tuple[str, str]], evaluation: list[str], ngram: int = 13) -> list[Suspect]:
    overlap = find_overlap(save(folder / "train.jsonl", *train), [save(folder / "test.jsonl", *evaluation)], ngram)
    return overlap.evaluations[str(folder / "test.jsonl")]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Find  $x$.\n", "find $x$."),
        (r"\dfrac{1}{2}", r"\frac{1}{2}"),
        (r"$\left( 1,\, 2 \right)$", "(1, 2)"),
        (r"\[x+1\]", r"\( x + 1 \)"),
        (r"a \quad b~c\;d\ e", "a b c d e"),
        (r"3\!\cdot 4", r"3 \cdot 4"),
        ("$x+y$", "$x + y$"),
    ],
)
def test_layout_makes_no_difference(one: str, other: str) -> None:
    assert whole(one) == whole(other)
    assert words(one) == words(other)


@pytest.mark.parametrize(("one", "other"), [("2+3", "2-3"), ("x<1", "x>1"), ("12", "1"), (r"\leftarrow", "arrow"), ("(1, 2)", "[1, 2]")])
def test_signs_make_a_difference_between_copies(one: str, other: str) -> None:
    assert whole(one) != whole(other)


def slow_shared(text: str, other: str, n: int) -> set[str]:
    """The n-grams of `text` that stand in `other`, by looking for each."""
    mine, padded = words(text), f" {' '.join(words(other))} "
    every = {" ".join(mine[start : start + n]) for start in range(len(mine) - n + 1)}
    return {gram for gram in every if f" {gram} " in padded}


def test_the_index_finds_what_a_slow_search_finds(tmp_path: Path) -> None:
    rng = random.Random(3)
    texts = [" ".join(rng.choices("abcde", k=rng.randint(1, 30))) for _ in range(60)]
    train, evaluation = list(zip(texts[:20], texts[20:40], strict=True)), texts[40:]
    found = suspects(tmp_path, [(p, f"{s} \\boxed{{1}}") for p, s in train], evaluation, ngram=5)
    levels = set()
    for text, suspect in zip(evaluation, found, strict=True):
        by_problem = [slow_shared(text, p, 5) for p, _ in train]
        by_solution = [slow_shared(text, f"{s} boxed 1", 5) for _, s in train]
        assert {" ".join(gram) for gram in suspect.seen["problem"]} == set().union(*by_problem)
        assert {" ".join(gram) for gram in suspect.seen["solution"]} == set().union(*by_solution)
        most = max(map(len, by_problem + by_solution))
        assert (suspect.closest[0] if suspect.closest else 0) == most
        if suspect.closest:
            _, line, id, part = suspect.closest
            assert len({"problem": by_problem, "solution": by_solution}[part][line - 1]) == most
            assert id == f"train-{line}"
        levels.add(suspect.level)
    assert levels >= {"some", "none"}


def test_a_copy_is_found_in_every_line_that_has_it(tmp_path: Path) -> None:
    [suspect] = suspects(tmp_path, ["other", f"  {LONG.upper()}", "another", LONG.replace(" ", "\n")], [LONG])
    assert (suspect.copies, suspect.level, suspect.share) == ([2, 4], "copy", 1.0)


def test_a_problem_inside_a_solution_is_found(tmp_path: Path) -> None:
    [suspect] = suspects(tmp_path, [("Solve this.", f"First recall: {LONG} \\boxed{{1}}")], [LONG])
    assert (suspect.copies, suspect.level, suspect.seen["problem"]) == ([], "most", set())
    assert suspect.closest == (8, 1, "train-1", "solution")


def test_a_problem_shorter_than_the_n_gram_is_compared_as_a_whole(tmp_path: Path) -> None:
    copied, near, not_at_all = suspects(tmp_path, ["What is $2+2$?"], ["what is $2 + 2$?", "What is $2-2$?", "Why?"])
    assert [(s.grams, s.level, s.share) for s in (copied, near, not_at_all)] == [(0, "copy", 1.0), (0, "none", 0.0), (0, "none", 0.0)]


def test_equal_problems_of_two_evaluation_files_are_both_found(tmp_path: Path) -> None:
    files = [save(tmp_path / f"{name}.jsonl", LONG) for name in ("a", "b")]
    overlap = find_overlap(save(tmp_path / "train.jsonl", LONG), files, 13)
    assert [[s.level for s in found] for found in overlap.evaluations.values()] == [["copy"], ["copy"]]


def test_a_clean_file_is_called_so(tmp_path: Path) -> None:
    overlap = find_overlap(save(tmp_path / "train.jsonl", "Something else."), [save(tmp_path / "test.jsonl", LONG, "Why?")], 13)
    said = f"None of the 2 evaluation problems is in {tmp_path / 'train.jsonl'}, nor any 13 words in a row of one."
    assert verdict(overlap) == said
    assert as_text(overlap).splitlines()[-1] == said


def test_the_command_prints_a_table_and_a_verdict_and_writes_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stock = "Give the answer as a sum of m and n where these are relatively prime positive integers. "
    train = save(tmp_path / "train.jsonl", "Why?", LONG, stock + "Roll a die.")
    test = save(tmp_path / "test.jsonl", LONG, LONG + " Explain your answer.", stock + " ".join(f"word{n}" for n in range(40)), "Who?")
    out = tmp_path / "report.json"
    assert run("contamination", "--train", train, "--evaluation", test, "--out", out, monkeypatch=monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == [str(test), "4", "1", "1", "1", "1", "3", "0", "46.0%"]
    assert [line.split() for line in lines[5:8]] == [
        ["test-1", "100%", "2", "whole", "problem"],
        ["test-2", "73%", "2", "problem"],
        ["test-3", "11%", "3", "problem"],
    ]
    assert "holds 1 word for word, half or more of 1, and less of 1, which may be a stock phrase. Leave the training" in lines[-1]
    report = json.loads(out.read_text())
    assert report["verdict"] == lines[-1]
    [counts] = report["evaluations"].values()
    assert [found["level"] for found in counts["found"]] == ["copy", "most", "some"]
    assert counts["found"][0]["copied_in_lines"] == [2]


@pytest.mark.parametrize("bad", ["train", "evaluation"])
@pytest.mark.parametrize("text", ["{", "", '{"problem": "p"}'])
def test_a_bad_file_is_refused(tmp_path: Path, bad: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: save(tmp_path / f"{name}.jsonl", LONG) for name in ("train", "evaluation")}
    files[bad].write_text(text)
    arguments = [word for name, path in files.items() for word in (f"--{name}", path)]
    said = refusal("prepare_data", ["contamination", *arguments, "--out", tmp_path / "report.json"], tmp_path, capsys)
    assert said.startswith(str(files[bad]))
