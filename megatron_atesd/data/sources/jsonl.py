"""Problem files of others: JSON lines, a JSON array or column object, or Parquet, with the columns `problem` and `solution`."""

import importlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from megatron_atesd.data.problems import load_problems, normalised, problem_from_record, refuse_half_characters
from megatron_atesd.errors import DataError
from megatron_atesd.records import Problem


def read_problems(path: str | Path, on_error: Literal["stop", "skip"] = "stop") -> list[Problem]:
    """Checked problems of one file, trimmed and without repeated problem texts; only JSON lines know on_error="skip".

    Raises DataError for a file or record that does not meet the problem contract.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        problems = _checked(path, _parquet_rows(path))
    elif path.suffix == ".json":
        problems = _checked(path, _json_rows(path))
    else:
        problems = load_problems(path, on_error)
    return _distinct(problems)


def _checked(path: Path, rows: Iterable[object]) -> list[Problem]:
    problems = []
    for number, row in enumerate(rows, 1):
        try:
            problems.append(problem_from_record(row, default_id=f"{path.stem}-{number}"))
        except DataError as error:
            raise DataError(f"{path}: record {number}: {error}") from None
    if not problems:
        raise DataError(f"{path} holds no record: give a file with the columns problem and solution")
    return problems


def _json_rows(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        data = refuse_half_characters(text, json.loads(text))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check the path") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not one JSON document ({error}): name JSON lines .jsonl") from None
    if isinstance(data, list):
        return data
    if isinstance(data, dict) and all(isinstance(column, list) for column in data.values()):
        return _rows_of_columns(path, data)
    raise DataError(f"{path}: expected an array of records or an object of columns, each a list")


def _rows_of_columns(path: Path, columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{path}: its columns differ in length ({lengths}): every column needs one value a problem")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise DataError("reading Parquet needs pyarrow: pip install -e '.[data]' in this project's checkout") from None
    try:
        return parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as Parquet ({error}): check the file") from None


def _distinct(problems: Iterable[Problem]) -> list[Problem]:
    """The first of each problem text, with the white space around problem and solution removed."""
    first: dict[str, Problem] = {}
    for p in problems:
        first.setdefault(normalised(p.problem), Problem(p.id, p.problem.strip(), p.solution.strip(), p.answer, p.metadata))
    return list(first.values())
