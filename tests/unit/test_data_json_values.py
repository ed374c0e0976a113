"""Values that JSON does not know, and numbers as text."""

import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_atesd.data.json_values import is_missing, json_value, number_text
from megatron_atesd.errors import DataError

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (NAN, None),
        (INF, None),
        (-INF, None),
        (Decimal("NaN"), None),
        ([1.5, NAN, {"a": INF}], [1.5, None, {"a": None}]),
        ({3: "x", date(2024, 2, 29): (1, 2)}, {"3": "x", "2024-02-29": [1, 2]}),
        (datetime(2023, 7, 8, 9, 10, tzinfo=UTC), "2023-07-08T09:10:00+00:00"),
        (time(23, 59), "23:59:00"),
        (timedelta(days=2), "2 days, 0:00:00"),
        (Decimal("2.50"), 2.5),
        (Decimal("7"), 7),
        (b"caf\xc3\xa9", "café"),
        (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (np.float32(0.5), 0.5),
        (np.int64(4), 4),
        (np.float64("nan"), None),
        (np.bool_(True), True),
        (True, True),
        (10**400, 10**400),
    ],
)
def test_a_value_becomes_json(value: object, written: object) -> None:
    assert json_value(value) == written
    assert json.loads(json.dumps(json_value(value), allow_nan=False)) == written


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(DataError, match="no UTF-8 text"):
        json_value([b"\x89PNG"])


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1e17, "100000000000000000"),
        (2e-05, "0.00002"),
        (6.02e23, "602000000000000000000000"),
        (-1.5e-7, "-0.00000015"),
        (16.0, "16"),
        (-0.0, "0"),
        (0.1, "0.1"),
        (100.0, "100"),
        (Decimal("1E+3"), "1000"),
        (Decimal("12.340"), "12.34"),
    ],
)
def test_a_number_is_written_in_digits(number: float | Decimal, text: str) -> None:
    assert number_text(number) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_the_digits_are_the_number_and_nothing_else(number: float) -> None:
    text = number_text(number)
    assert float(text) == number
    assert set(text) <= set("-.0123456789")


@pytest.mark.parametrize(
    ("value", "missing"), [(None, True), (NAN, True), ("nan", True), (" ", True), (0, False), (INF, False), ("0", False)]
)
def test_a_gap_is_null_or_nan(value: object, missing: bool) -> None:
    assert is_missing(value) == missing
