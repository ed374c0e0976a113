"""The named data sets: how records of their form are read. Texts here are made up."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_atesd.data.problems import load_problems
from megatron_atesd.data.sources.benchmarks import BENCHMARKS, Benchmark
from megatron_atesd.data.sources.cache import cached_records, default_cache, is_whole
from megatron_atesd.data.sources.champ import champ_records
from megatron_atesd.data.sources.jsonl import read_problems
from megatron_atesd.data.summary import report
from megatron_atesd.evaluate.grading import Grader
from megatron_atesd.records import Problem
from tests.support.data_sources import ROWS, Kept
from tests.unit.test_prepare_data import run


def read(name: str, origin: str, rows: list[dict[str, Any]], folder: Path) -> list[Problem]:
    """Rows as the benchmark reads them."""
    path = cached_records(Kept(rows), folder)
    return read_problems(path, reshape=BENCHMARKS[name].origins[origin][1])


def test_aime_of_the_package_takes_worked_solutions_and_boxes_the_answer_where_there_is_none(tmp_path: Path) -> None:
    first, second = read("aime25", "package", ROWS, tmp_path)
    assert (first.id, first.answer, first.solution) == ("sum-0", "2", "Count: $1+1=\\boxed{2}$.")
    assert (second.answer, second.solution) == ("4", "\\boxed{4}")
    assert second.metadata == {"source": "aime25", "competition": "AIME", "year": 2025}


def test_aime_26_has_no_worked_solutions(tmp_path: Path) -> None:
    [problem] = read("aime26", "package", [{"id": "a", "problem": "p?", "expected_answer": 7}], tmp_path)
    assert (problem.answer, problem.solution, problem.metadata["year"]) == ("7", "\\boxed{7}", 2026)


def test_hmmt_has_boxed_answers_for_solutions(tmp_path: Path) -> None:
    row = {"problem_idx": 3, "problem": "p?", "answer": "\\frac{1}{2}", "problem_type": ["Algebra"]}
    [problem] = read("hmmt_feb25", "hub", [row], tmp_path)
    assert (problem.answer, problem.solution) == ("\\frac{1}{2}", "\\boxed{\\frac{1}{2}}")
    assert problem.metadata == {
        "source": "hmmt_feb25",
        "competition": "HMMT February",
        "year": 2025,
        "problem_idx": 3,
        "problem_type": ["Algebra"],
    }


def test_the_level_of_math_500_is_the_difficulty(tmp_path: Path) -> None:
    row = {
        "problem": "p?",
        "solution": "s $\\boxed{3}$",
        "answer": "3",
        "subject": "Algebra",
        "level": 4,
        "unique_id": "test/algebra/1.json",
    }
    [problem] = read("math500", "hub", [row], tmp_path)
    assert (problem.id, problem.metadata["difficulty"], problem.metadata["subject"]) == ("test/algebra/1.json", 4, "Algebra")


def test_training_problems_without_a_solution_are_not_made_up(tmp_path: Path) -> None:
    path = cached_records(Kept([{"problem": "p?", "answer": "3"}, {"problem": "q?", "solution": "\\boxed{4}"}]), tmp_path)
    problems = read_problems(path, "skip", BENCHMARKS["openthoughts_opsd"].origins["hub"][1])
    assert [p.problem for p in problems] == ["q?"]


def test_champ_has_a_line_a_step_and_the_answer_boxed() -> None:
    step = {"_raw_text": "@@1+1=2@@.", "_text": "1+1=2."}
    entry = {"identifier": "P_1", "_text": "What is 1+1?", "category": "Sums", "solution": {"steps": [step, step]}, "_answer": "2"}
    [record] = champ_records(json.dumps({"problems": {"P_1": entry}, "hints": {}}).encode())
    assert record == {"id": "P_1", "problem": "What is 1+1?", "solution": "1+1=2.\n1+1=2.\n\\boxed{2}", "answer": "2", "category": "Sums"}


def test_a_benchmark_becomes_a_problem_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    reading = BENCHMARKS["aime24"].origins["package"][1]
    monkeypatch.setitem(BENCHMARKS, "aime24", Benchmark("toy", {"package": (Kept(), reading)}))
    assert run("aime24", "--out", tmp_path / "out.jsonl", "--cache", tmp_path / "cache", monkeypatch=monkeypatch) == 0
    assert [p.answer for p in load_problems(tmp_path / "out.jsonl")] == ["2", "4"]
    out = capsys.readouterr().out
    assert f"toy\n  kept in {tmp_path / 'cache' / Kept.place}; delete it to download it anew" in out
    assert "  worked solutions  1 of 2; final box: 2 the answer, 0 written otherwise, 0 missing\n" in out


def test_the_report_counts_final_boxes_that_differ_or_are_missing() -> None:
    solutions = ["Thus $\\boxed{073}$.", "Thus \\boxed{\\textbf{(73) }}.", "Thus 73.", "\\boxed{73}"]
    said = report("f", [Problem(str(n), "p", solution, "73") for n, solution in enumerate(solutions)])
    assert "  worked solutions  3 of 4; final box: 2 the answer, 1 written otherwise, 1 missing" in said.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "worked", "exceptions"), [("aime24", 30, {"aime24-15"}), ("aime25", 29, {"aime25-16"}), ("champ", 270, set())]
)
def test_real_worked_solutions_grade_right_but_for_the_known_exceptions(name: str, worked: int, exceptions: set[str]) -> None:
    """The exceptions have no box at all: the teacher is shown the answer after them."""
    download, reading = BENCHMARKS[name].origins["package"]
    path = default_cache() / download.place
    if not is_whole(path):
        pytest.skip(f"{name} is not in the cache; `tools/prepare_data.py {name} --out FILE` puts it there")
    problems = read_problems(path, reshape=reading)
    solved = [p for p in problems if p.solution != f"\\boxed{{{p.answer}}}"]
    with Grader(workers=1, timeout_s=20) as grader:
        right = grader.grade([(p.solution, p.answer) for p in solved])
    assert len(solved) == worked
    assert {p.id for p, verdict in zip(solved, right, strict=True) if not verdict} == exceptions
