"""Columns of others as fields of a problem file."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_atesd.data.problems import load_problems
from megatron_atesd.data.sources.columns import Reading
from megatron_atesd.errors import DataError
from tests.support.bad_input import refusal
from tests.unit.test_prepare_data import run, save_parquet

ROW = {"question": "1+1?", "worked": "So \\boxed{2}.", "final": "2", "level": 3}
MAP = ("--columns", "problem=question", "solution=worked", "answer=final", "difficulty=level")


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_a_column_map_holds_for_every_format(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / f"raw.{suffix}"
    if suffix == "parquet":
        save_parquet(source, {name: [value] for name, value in ROW.items()})
    else:
        source.write_text(json.dumps(ROW if suffix == "jsonl" else [ROW]))
    assert run("jsonl", source, "--out", tmp_path / "clean.jsonl", *MAP, monkeypatch=monkeypatch) == 0
    [problem] = load_problems(tmp_path / "clean.jsonl")
    assert (problem.problem, problem.solution, problem.answer) == ("1+1?", "So \\boxed{2}.", "2")
    assert problem.metadata == {"difficulty": 3}


@pytest.mark.parametrize(
    ("columns", "record", "expected"),
    [
        ({"solution": "worked"}, {"solution": "old", "worked": "new"}, {"solution": "new"}),
        ({"problem": "a", "answer": "a"}, {"a": "x"}, {"problem": "x", "answer": "x"}),
        ({"problem": "solution", "solution": "problem"}, {"problem": "p", "solution": "s"}, {"problem": "s", "solution": "p"}),
        ({"answer": "a"}, {"a": None, "b": 1}, {"answer": None, "b": 1}),
        ({}, {"b": 1}, {"b": 1}),
    ],
    ids=["the map wins", "one column twice", "exchanged", "null", "none"],
)
def test_columns_are_renamed(columns: dict[str, str], record: dict[str, Any], expected: dict[str, Any]) -> None:
    assert Reading(columns)(record) == expected


def test_a_record_without_a_named_column_says_what_there_is() -> None:
    with pytest.raises(DataError, match="there is no column `fianl` to take `answer` from; there are `a`, `b`"):
        Reading({"answer": "fianl"})({"a": 1, "b": 2})


@pytest.mark.parametrize(
    ("record", "solution"),
    [
        ({"answer": "2"}, "\\boxed{2}"),
        ({"answer": 16.0, "solution": None}, "\\boxed{16}"),
        ({"answer": "2", "solution": "  "}, "\\boxed{2}"),
        ({"answer": "2", "solution": "It is 2."}, "It is 2."),
        ({"solution": "It is 2."}, "It is 2."),
        ({"answer": None}, None),
    ],
)
def test_answers_are_boxed_only_where_a_solution_is_missing(record: dict[str, Any], solution: str | None) -> None:
    read = Reading(box_answers=True)(record)
    assert isinstance(read, dict)
    assert read.get("solution") == solution


def test_a_record_keeps_its_own_metadata() -> None:
    assert Reading(extras={"source": "here", "year": 1})({"source": "there"}) == {"source": "there", "year": 1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["problem"], "--columns has 'problem', must be FIELD=COLUMN"),
        (["=question"], "--columns has '=question'"),
        (["problem="], "--columns has 'problem='"),
        (["answer=a", "answer=b"], "--columns names answer twice ('a' and 'b'); keep one"),
        (["answer=none"], "raw.jsonl:1: there is no column `none`"),
        (["problem=question"], "raw.jsonl:1: `solution` is missing"),
    ],
)
def test_a_bad_column_map_is_refused(tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "raw.jsonl").write_text(json.dumps(ROW))
    said = refusal("prepare_data", ["jsonl", tmp_path / "raw.jsonl", "--out", tmp_path / "o.jsonl", "--columns", *words], tmp_path, capsys)
    assert message in said
