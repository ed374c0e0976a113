"""How long a run still takes, from the pace of its last updates."""

from collections import deque
from datetime import datetime, timedelta

RECENT = 50  # updates whose mean pace counts: evaluations and saves that come every so many are among them
LONG_SECONDS = 3600.0  # from here on the time of day is of use


class Pace:
    """Takes the moment at which each update ends (seconds of a monotonic clock). The first one of a process, which compiles and warms up,
    counts only while there is no other."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._first = total, 0, 0.0
        self._moments: deque[float] = deque(maxlen=RECENT + 1)

    def ended(self, update: int, moment: float, took: float) -> None:
        """Update number `update` (from 1) has ended, which took so many seconds."""
        if not self._moments:
            self._first = took
        self._moments.append(moment)
        self._done = update

    def left(self) -> float:
        """Seconds to the end of the run, once an update has ended."""
        count = len(self._moments) - 1
        each = (self._moments[-1] - self._moments[0]) / count if count > 0 else self._first
        return each * (self._total - self._done)


def clock(seconds: float) -> str:
    """h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def left_text(seconds: float, now: datetime) -> str:
    """The time left, and of a long run when it ends: the time of day, and the day where it is another one."""
    if seconds < LONG_SECONDS:
        return f"{clock(seconds)} left"
    end = now + timedelta(seconds=seconds)
    day = "" if end.date() == now.date() else f"{end:%a} " if end.date() - now.date() < timedelta(days=7) else f"{end:%Y-%m-%d} "
    return f"{clock(seconds)} left, done {day}{end:%H:%M}"
