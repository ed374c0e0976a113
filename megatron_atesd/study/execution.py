"""Do units of a study side by side, and say how it goes."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from megatron_atesd.errors import AtesdError, ConfigError
from megatron_atesd.study.processes import Job
from megatron_atesd.study.work import Step, Unit

Say = Callable[[str], None]
POLL_SECONDS = 0.02
_FAILURES = 3  # then nothing new is begun: the next ones would hardly go better
_SHOWN_LINES = 15


class StudyError(AtesdError):
    """A part of a study failed."""


class Starter(Protocol):
    def start(self, step: Step, log: Path) -> Job:
        """Begin a step; what it says is added to `log`."""
        ...


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Raise ConfigError where another process, or one that a killed study left behind, works in the folder `out`."""
    descriptor = os.open(out / "lock", os.O_CREAT | os.O_RDWR, 0o644)
    os.set_inheritable(descriptor, True)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(f"out is {out}, where another study is at work, or a process that one left behind; wait or end it") from None
    try:
        yield
    finally:
        os.close(descriptor)


class _Work:
    """A unit in the making."""

    def __init__(self, unit: Unit, starter: Starter) -> None:
        self.unit, self._starter, self.began = unit, starter, time.monotonic()
        self._steps, self._job = unit.begin(), None
        self.idle = not self._steps
        self._next()

    def _next(self) -> None:
        self._job: Job | None = self._starter.start(self._steps.pop(0), self.unit.log) if self._steps else None

    def code(self) -> int | None:
        """None while it is at work, 0 when all is done, else the exit code of the step that failed."""
        while self._job is not None:
            if (code := self._job.code()) != 0:
                return code
            self._next()
        self.unit.end()
        return 0

    def stop(self) -> None:
        if self._job is not None:
            self._job.stop()


def do_all(units: Sequence[Unit], starter: Starter, jobs: int, say: Say) -> None:
    """All units, `jobs` at a time. Those that are done already cost nothing and are not told.

    Raises StudyError after the others when some failed; after three failures no new one is begun.
    """
    waiting, at_work, failed, told = list(units), list[_Work](), list[Unit](), _Told(len(units), jobs, say)
    try:
        while at_work or (waiting and len(failed) < _FAILURES):
            while waiting and len(at_work) < jobs and len(failed) < _FAILURES:
                at_work.append(_Work(waiting.pop(0), starter))
            for work in list(at_work):
                if (code := work.code()) is not None:
                    at_work.remove(work)
                    told.ended(work, code)
                    failed += [work.unit] if code else []
            time.sleep(POLL_SECONDS if at_work else 0)
    finally:
        for work in at_work:
            work.stop()
    if failed:
        raise StudyError(f"{len(failed)} of {len(units)} parts failed, first {failed[0].name}: see the end of {failed[0].log}")


class _Told:
    """What is said of each unit, with the time that is left."""

    def __init__(self, total: int, jobs: int, say: Say) -> None:
        self._total, self._jobs, self._say = total, jobs, say
        self._ended, self._seconds = 0, list[float]()

    def ended(self, work: _Work, code: int) -> None:
        self._ended += 1
        if code:
            lines = work.unit.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN_LINES:]
            self._say("\n".join([*lines, f"{work.unit.name}: failed with exit code {code}; above is the end of {work.unit.log}"]))
        elif not work.idle:
            self._seconds.append(time.monotonic() - work.began)
            left = sum(self._seconds) / len(self._seconds) * (self._total - self._ended) / self._jobs
            self._say(f"{self._ended}/{self._total}  {work.unit.name}: {self._seconds[-1]:.0f} s, {timedelta(seconds=round(left))} left")
