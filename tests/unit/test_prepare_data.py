"""tools/prepare_data.py as a user runs it."""

import json
import runpy
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
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


@pytest.mark.parametrize(("references", "lines"), [("det", 6), ("late", 4)])
def test_references_decide_how_chains_are_written(tmp_path: Path, references: str, lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = ("--train", 10, "--probe", 0, "--test", 0)
    assert run("chain", "--out", tmp_path, *sizes, "--references", references, monkeypatch=monkeypatch) == 0
    longest = [p for p in load_problems(tmp_path / "train.jsonl") if p.metadata["difficulty"] == 6]
    assert {p.solution.count("=") for p in longest} == {lines}


@pytest.mark.parametrize("arguments", [("chain", "--references", "early"), ("gsm_symbolic", "--references", "late")])
def test_references_that_a_source_does_not_have_are_refused(
    tmp_path: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments, "--out", tmp_path / "new", monkeypatch=monkeypatch) == 2
    assert "--references" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_jsonl_trims_and_drops_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"problem": " 1+1? ", "solution": "\\boxed{2}\n"}, {"problem": "1+1?", "solution": "again \\boxed{2}"}]
    (tmp_path / "raw.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run("jsonl", tmp_path / "raw.jsonl", "--out", tmp_path / "clean.jsonl", monkeypatch=monkeypatch) == 0
    assert "raw.jsonl: 1 of 2 problems left out, whose text an earlier one has" in capsys.readouterr().err
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


COLUMNS = {"problem": ["2 + 5", "3 + 9"], "solution": ["\\boxed{7}", "\\boxed{12}"]}
DAY = datetime(2024, 2, 29, 12, 30)


@pytest.mark.parametrize(
    ("values", "written"),
    [
        ([DAY, None], ["2024-02-29T12:30:00", None]),
        ([DAY.date(), None], ["2024-02-29", None]),
        ([DAY.time(), None], ["12:30:00", None]),
        ([timedelta(hours=3), None], ["3:00:00", None]),
        ([Decimal("1.50"), Decimal("2.00")], [1.5, 2]),
        ([b"text", "é".encode()], ["text", "é"]),
        ([1.5, float("nan")], [1.5, None]),
        ([float("inf"), 0.0], [None, 0.0]),
        ([[DAY], []], [["2024-02-29T12:30:00"], []]),
        ([{"when": DAY.date(), "n": 1}, None], [{"when": "2024-02-29", "n": 1}, None]),
        ([True, None], [True, None]),
    ],
    ids=["datetime", "date", "time", "duration", "decimal", "bytes", "nan", "infinite", "list", "struct", "bool"],
)
def test_a_parquet_column_of_any_type_becomes_json(
    tmp_path: Path, values: list[object], written: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_parquet(tmp_path / "raw.parquet", COLUMNS | {"extra": values})
    assert run("jsonl", tmp_path / "raw.parquet", "--out", tmp_path / "clean.jsonl", monkeypatch=monkeypatch) == 0
    assert [p.metadata["extra"] for p in load_problems(tmp_path / "clean.jsonl")] == written


@pytest.mark.parametrize(
    "values", [[7.0, float("nan")], [Decimal("7.00"), None], [b"7", None], [7, None]], ids=["float", "decimal", "bytes", "int"]
)
def test_a_parquet_column_of_answers_with_gaps(tmp_path: Path, values: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    save_parquet(tmp_path / "raw.parquet", COLUMNS | {"answer": values})
    assert run("jsonl", tmp_path / "raw.parquet", "--out", tmp_path / "clean.jsonl", monkeypatch=monkeypatch) == 0
    assert [p.answer for p in load_problems(tmp_path / "clean.jsonl")] == ["7", "12"]


@pytest.mark.parametrize(
    ("column", "values"), [("picture", [b"\x89PNG", None]), ("answer", [b"\xff", None]), ("problem", [b"\xff", b"\xfe"])]
)
def test_a_column_of_bytes_that_are_no_text_is_named(
    tmp_path: Path, column: str, values: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_parquet(tmp_path / "raw.parquet", COLUMNS | {column: values})
    assert run("jsonl", tmp_path / "raw.parquet", "--out", tmp_path / "clean.jsonl", monkeypatch=monkeypatch) == 2
    assert f"`{column}`" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["raw.parquet"]


def save_parquet(path: Path, columns: Mapping[str, Sequence[object]]) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(dict(columns)), path)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_bad_records_of_every_format_can_be_skipped(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = COLUMNS | {"answer": ["7", "13"]}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    source = tmp_path / f"raw.{suffix}"
    if suffix == "parquet":
        save_parquet(source, columns)
    else:
        source.write_text("\n".join(map(json.dumps, rows)) if suffix == "jsonl" else json.dumps(rows))
    assert run("jsonl", source, "--out", tmp_path / "clean.jsonl", monkeypatch=monkeypatch) == 2
    assert "contradict each other (`13` and `12`)" in capsys.readouterr().err
    assert run("jsonl", source, "--out", tmp_path / "clean.jsonl", "--on-error", "skip", monkeypatch=monkeypatch) == 0
    assert [p.answer for p in load_problems(tmp_path / "clean.jsonl")] == ["7"]


@pytest.mark.parametrize("digits", [309, 400, 4000])
def test_a_difficulty_of_many_digits_is_shown_short(
    tmp_path: Path, digits: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "raw.jsonl").write_text(f'{{"problem": "p", "solution": "s", "answer": {"7" * digits}, "difficulty": {"2" * digits}}}')
    assert run("jsonl", tmp_path / "raw.jsonl", "--out", tmp_path / "clean.jsonl", monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["difficulty", f"2.22222e+{digits - 1}:", "1"]
    assert load_problems(tmp_path / "clean.jsonl")[0].answer == "7" * digits


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


def test_a_refusal_names_the_option_that_this_command_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "raw.jsonl").write_text('{"problem": "1+1?", "solution": "two"}')
    assert run("jsonl", tmp_path / "raw.jsonl", "--out", tmp_path / "clean.jsonl", monkeypatch=monkeypatch) == 2
    assert "--on-error skip" in capsys.readouterr().err
