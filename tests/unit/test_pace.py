"""The time that is left, and when a long run ends."""

from datetime import datetime

import pytest

from megatron_atesd.report.pace import RECENT, Pace, clock, left_text

NOON = datetime(2026, 3, 2, 12, 0)  # a Monday


def pace_of(moments: list[float], total: int, first: float, start: int = 0) -> Pace:
    pace = Pace(total)
    for update, moment in enumerate(moments, start + 1):
        pace.ended(update, moment, first)
    return pace


def test_the_first_update_counts_only_while_there_is_no_other():
    assert pace_of([60.0], 10, first=50.0).left() == 9 * 50.0
    assert pace_of([60.0, 62.0], 10, first=50.0).left() == 8 * 2.0


def test_what_is_between_updates_counts():
    """Three updates of a second, with a save of ten seconds before the last."""
    assert pace_of([1.0, 2.0, 13.0], 5, first=1.0).left() == 2 * 6.0


def test_a_resumed_run_has_its_own_pace():
    assert pace_of([100.0, 103.0], 10, first=9.0, start=6).left() == 2 * 3.0


def test_the_pace_is_that_of_the_last_updates():
    slow, fast = [100.0 * i for i in range(20)], [1900.0 + i for i in range(1, RECENT + 1)]
    assert pace_of([*slow, *fast], 20 + RECENT + 7, first=1.0).left() == pytest.approx(7.0)


def test_a_clock_shows_hours():
    assert [clock(seconds) for seconds in (0.4, 59.6, 3725.4, 360000)] == ["0:00:00", "0:01:00", "1:02:05", "100:00:00"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (82.0, "0:01:22 left"),
        (5 * 3600.0, "5:00:00 left, done 17:00"),
        (20 * 3600.0, "20:00:00 left, done Tue 08:00"),
        (9 * 86400.0, "216:00:00 left, done 2026-03-11 12:00"),
    ],
)
def test_the_end_of_a_long_run_is_a_time_of_day(seconds: float, text: str):
    assert left_text(seconds, NOON) == text
