"""tools/prepare_data.py as a user runs it."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from megatron_atesd.data.problems import check_disjoint, load_problems
from megatron_atesd.data.sources.gsm_symbolic import gsm_symbolic_splits, worked_problem
from megatron_atesd.errors import DataError

TOOL = Path(__file__).parents[2] / "tools" / "prepare_data.py"


def run(*arguments: object, monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit code of the command."""
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
    try:
        runpy.run_path(str(TOOL), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize("source", ["chain", "gsm_symbolic"])
def test_a_source_writes_three_disjoint_files_of_the_sizes_asked_for(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if source == "gsm_symbolic":
        pytest.importorskip("reasoning_gym")
    assert run(source, "--out", tmp_path, "--train", 60, "--probe", 8, "--test", 20, monkeypatch=monkeypatch) == 0
    splits = {name: load_problems(tmp_path / f"{name}.jsonl") for name in ("train", "probe", "test")}
    assert [len(split) for split in splits.values()] == [60, 8, 20]
    check_disjoint(splits)
    assert f"{tmp_path / 'test.jsonl'}: 20 problems" in capsys.readouterr().out


def test_the_report_counts_difficulties_and_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("chain", "--out", tmp_path, "--train", 10, "--probe", 0, "--test", 0, monkeypatch=monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path / 'train.jsonl'}: 10 problems"
    assert lines[-2].split() == ["segments", "2:", "2,", "3:", "2,", "4:", "2,", "5:", "2,", "6:", "2"]
    assert lines[-1].split() == ["difficulty", "2:", "2,", "3:", "2,", "4:", "2,", "5:", "2,", "6:", "2"]


def test_jsonl_trims_and_drops_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"problem": " 1+1? ", "solution": "\\boxed{2}\n"}, {"problem": "1+1?", "solution": "again \\boxed{2}"}]
    (tmp_path / "raw.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run("jsonl", tmp_path / "raw.jsonl", "--out", tmp_path / "clean.jsonl", monkeypatch=monkeypatch) == 0
    [problem] = load_problems(tmp_path / "clean.jsonl")
    assert (problem.id, problem.problem, problem.solution) == ("raw-1", "1+1?", "\\boxed{2}")


@pytest.mark.parametrize(
    "document",
    [
        [{"problem": "1+1?", "solution": "\\boxed{2}"}, {"problem": "2+2?", "solution": "\\boxed{4}"}],
        {"problem": ["1+1?", "2+2?"], "solution": ["\\boxed{2}", "\\boxed{4}"]},
    ],
)
def test_json_records_and_columns_are_read(tmp_path: Path, document: object, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raw.json").write_text(json.dumps(document))
    assert run("jsonl", tmp_path / "raw.json", "--out", tmp_path / "clean.jsonl", monkeypatch=monkeypatch) == 0
    assert [(p.problem, p.answer) for p in load_problems(tmp_path / "clean.jsonl")] == [("1+1?", "2"), ("2+2?", "4")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"problem": "p"}]', "raw.json: record 1: `solution` is missing"),
        ('{"problem": ["p"], "solution": []}', "its columns differ in length"),
        ("{", "is not one JSON document"),
        ("[" * 100_000, "is not one JSON document"),
        ('[{"problem": "\\udc00", "solution": "s", "answer": "1"}]', "without its other half is no character"),
        ("3", "expected an array of records or an object of columns"),
        ("[]", "holds no record"),
    ],
)
def test_an_unusable_file_ends_with_one_line_and_exit_code_2(
    tmp_path: Path, content: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "raw.json").write_text(content)
    assert run("jsonl", tmp_path / "raw.json", "--out", tmp_path / "clean.jsonl", monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "clean.jsonl").exists()


def test_a_folder_that_cannot_be_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run("chain", "--out", tmp_path / "file", "--train", 1, monkeypatch=monkeypatch) == 2
    assert "cannot write" in capsys.readouterr().err


def test_the_final_mark_of_a_worked_solution_becomes_a_box() -> None:
    entry = {"question": "q", "metadata": {"answer_cot": "He has 2+3=5.\nSo 5.\n#### 5"}}
    problem = worked_problem(entry, "g-1")
    assert (problem.solution, problem.answer) == ("He has 2+3=5.\nSo 5.\n\\boxed{5}", "5")


def test_a_worked_solution_without_a_final_mark_is_refused() -> None:
    with pytest.raises(DataError, match="does not end in '#### N'"):
        worked_problem({"question": "q", "metadata": {"answer_cot": "So 5."}}, "g-1")


def test_gsm_symbolic_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(DataError, match=r"pip install -e '\.\[data\]'"):
        gsm_symbolic_splits({"train": 1}, seed=1)
