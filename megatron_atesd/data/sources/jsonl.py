"""Problem files of others: JSON lines, a JSON array or column object, or Parquet, with `problem` and `solution` or a map to them."""

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_atesd.data.json_values import json_value
from megatron_atesd.data.problem_record import TEXT_FIELDS
from megatron_atesd.data.problems import OnError, Reshape, as_it_is, checked_problems, load_problems, normalised, refuse_half_characters
from megatron_atesd.errors import DataError
from megatron_atesd.logs import tell
from megatron_atesd.records import Problem


def read_problems(path: str | Path, on_error: OnError = "stop", reshape: Reshape = as_it_is) -> list[Problem]:
    """Checked problems of one file, trimmed and without repeated problem texts. on_error, reshape: see `load_problems`.

    Raises DataError for a file or record that does not meet the problem contract.
    """
    path = Path(path)
    if path.suffix not in (".parquet", ".json"):
        return _distinct(path, load_problems(path, on_error, reshape))
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)
    records = ((number, lambda row=row: reshape(row)) for number, row in enumerate(rows, 1))
    problems = checked_problems(path, "record", records, on_error)
    if not problems:
        raise DataError(f"{path} holds no record that can be used: give a file with the columns problem and solution")
    return _distinct(path, problems)


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
        table = parquet.read_table(path)
    except (OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{path} cannot be read as Parquet ({error}): check the file") from None
    return _rows_of_columns(
        path, {name: _parquet_column(path, name, column) for name, column in zip(table.column_names, table.columns, strict=True)}
    )


def _parquet_column(path: Path, name: str, column: Any) -> list[Any]:
    """The column's values; `problem`, `solution`, `id` and `answer` of bytes as text, which some writers leave unmarked."""
    try:
        values = column.to_pylist()
        return [json_value(value) if isinstance(value, bytes) and name in TEXT_FIELDS else value for value in values]
    except (ValueError, TypeError, OverflowError, NotImplementedError, ImportError, DataError) as error:
        raise DataError(f"{path}: column `{name}` cannot be read ({error}): leave the column out, or write it as text") from None


def _distinct(path: Path, problems: Sequence[Problem]) -> list[Problem]:
    """The first of each problem text, with the white space around problem and solution removed."""
    first: dict[str, Problem] = {}
    for p in problems:
        first.setdefault(normalised(p.problem), Problem(p.id, p.problem.strip(), p.solution.strip(), p.answer, p.metadata))
    if len(first) < len(problems):
        tell(f"{path}: {len(problems) - len(first)} of {len(problems)} problems left out, whose text an earlier one has")
    return list(first.values())
