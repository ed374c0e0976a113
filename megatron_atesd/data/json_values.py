"""Values as JSON knows them, from readers that know more: dates, bytes, decimals, numbers that are none."""

import math
from collections.abc import Mapping
from datetime import date, time
from decimal import Decimal
from typing import Any

from megatron_atesd.errors import DataError


def json_value(value: Any) -> Any:
    """`value` in JSON's kinds: numbers that are not finite become null, dates ISO 8601 text, bytes UTF-8 text, other kinds their text.

    Raises DataError for bytes that are no text.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float | Decimal):
        return _number(value)
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(json_value(key)): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_value(item) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return _text(bytes(value))
    if isinstance(value, date | time):
        return value.isoformat()
    return json_value(value.item()) if hasattr(value, "dtype") and hasattr(value, "item") else str(value)


def _number(value: float | Decimal) -> float | int | None:
    if not math.isfinite(value):
        return None
    return int(value) if isinstance(value, Decimal) and value == value.to_integral_value() else float(value)


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise DataError("holds bytes that are no UTF-8 text: leave the column out, or write it as text") from None


def is_missing(value: object) -> bool:
    """Whether a reader means "no value": null, NaN, and their texts in pandas."""
    if isinstance(value, str):
        return value.strip() in ("", "nan", "NaN", "<NA>")
    return value is None or (isinstance(value, float | Decimal) and math.isnan(value))


def number_text(value: float | Decimal) -> str:
    """A finite number in digits, without an exponent and without zeros at the end: 1e17, 2e-05 and 16.0 as a person writes them."""
    digits = format(Decimal(repr(value)) if isinstance(value, float) else value, "f")
    text = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if text == "-0" else text
