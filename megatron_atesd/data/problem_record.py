"""One record of a problem file, checked: `problem`, `solution`, and optionally `id` and `answer`; all else is metadata."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from megatron_atesd.data.answers import Warn, chosen_answer
from megatron_atesd.data.json_values import is_missing, json_value, number_text
from megatron_atesd.errors import DataError
from megatron_atesd.records import Problem

TEXT_FIELDS = ("id", "problem", "solution", "answer")


def no_warning(what: str, values: str) -> None:
    """A `Warn` for callers that have no use for it."""


def problem_from_record(record: object, default_id: str, warn: Warn = no_warning) -> Problem:
    """Check one decoded record against the problem contract; DataError gives the reason (without file and line).

    warn: is told what may be wrong with the answer, and for which values (`answers.chosen_answer`).
    """
    if not isinstance(record, dict):
        raise DataError(f"expected a JSON object, found {type(record).__name__}")
    for name in ("problem", "solution"):
        _require_text(record, name)
    answer = chosen_answer(optional_text(record, "answer"), record["solution"], warn)
    metadata = {str(key): _metadata(key, value) for key, value in record.items() if key not in TEXT_FIELDS}
    return Problem(optional_text(record, "id") or default_id, record["problem"], record["solution"], answer, metadata)


def _require_text(record: Mapping[str, Any], name: str) -> None:
    if name not in record:
        raise DataError(f"`{name}` is missing")
    if not isinstance(record[name], str):
        raise DataError(f"`{name}` must be a string, found {type(record[name]).__name__}")
    if not record[name].strip():
        raise DataError(f"`{name}` is empty")


def optional_text(record: Mapping[str, Any], name: str) -> str:
    """The field's text; numbers, as many public data sets have them, are written out; absent, null, NaN or blank is ''."""
    value = record.get(name)
    if is_missing(value):
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise DataError(f"`{name}` must be a string, found {type(value).__name__}")
    if isinstance(value, float | Decimal):
        if value in (float("inf"), float("-inf")):
            raise DataError(f"`{name}` is {value}, or a number too large to be read as one: write it as a string")
        return number_text(value)
    return str(value).strip()


def _metadata(name: object, value: object) -> Any:
    try:
        return json_value(value)
    except DataError as error:
        raise DataError(f"`{name}` {error}") from None
