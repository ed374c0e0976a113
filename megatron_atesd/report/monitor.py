"""What a run tells while it runs: metrics.jsonl, TensorBoard, and one console line an update.

    with Monitor(run_dir, total_updates=100, config=config.monitor, is_main=is_main(), start=0) as monitor:
        monitor.log(1, {"distill/loss": 0.3, …})

metrics.jsonl holds one JSON object an update with sorted keys and `"update"`; a value that is not finite is null (JSON has no NaN).
"""

import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from megatron_atesd.config import MonitorConfig
from megatron_atesd.report.samples import SAMPLES, Sample, record_of
from megatron_atesd.report.screen import Screen
from megatron_atesd.report.tensorboard import TensorBoard


def lines_until(path: Path, update: int) -> Iterator[dict[str, Any]]:
    """The lines of metrics.jsonl, or another file with one object an update, up to `update`, without one torn by a killed run."""
    if update == 0 or not path.exists():
        return
    with path.open() as file:
        yield from (line for line in map(_decode, file) if line and line["update"] <= update)


def keep_lines_until(path: Path, update: int) -> None:
    """Cut metrics.jsonl, or another file with one object an update, back to its `lines_until`.

    update = 0 keeps nothing: the run starts anew. The file is replaced in one step, so a crash leaves the old or the new one.
    """
    if path.exists():
        _replace_lines(path, lines_until(path, update))


def amend_line(path: Path, update: int, more: Mapping[str, float | None]) -> None:
    """Add values to the line of one update in metrics.jsonl, if there is one; the file is replaced in one step."""
    lines = [line for line in map(_decode, path.read_text().splitlines()) if line]
    _replace_lines(path, [{**line, **more} if line["update"] == update else line for line in lines])


def _replace_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("w") as file:
        file.writelines(_encode(line) for line in lines)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _decode(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("update"), int) else None


def _encode(record: Mapping[str, Any]) -> str:
    return json.dumps(record, sort_keys=True, allow_nan=False) + "\n"


def _record(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}


class Monitor:
    """Writes a run's metrics; on ranks other than the main one every verb does nothing.

    start: finished updates of the checkpoint that the run goes on from. Later lines and TensorBoard events are dropped, so that both
    read as of an unbroken run.
    """

    def __init__(self, run_dir: Path, total_updates: int, config: MonitorConfig, is_main: bool, start: int) -> None:
        self._run_dir = run_dir
        self._total = total_updates
        self._config = config
        self._is_main = is_main
        self._start = start
        self._file: TextIO | None = None
        self._board: TensorBoard | None = None
        self._screen = Screen(total_updates, start, config.console)
        self._told: set[str] = set()
        self._logged: float | None = None  # the moment of the last log()

    def __enter__(self) -> "Monitor":
        if not self._is_main:
            return self
        self._run_dir.mkdir(parents=True, exist_ok=True)
        path = self._run_dir / "metrics.jsonl"
        keep_lines_until(path, self._start)
        keep_lines_until(self._run_dir / SAMPLES, self._start)
        self._file = path.open("a")
        if self._config.tensorboard:
            self._board = TensorBoard(self._run_dir, self._start, self._total, self._config.figure_every, self._tell_once)
        self._screen.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._screen.stop()
        if self._board is not None:
            self._board.close()
        if self._file is not None:
            self._file.close()

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of finished update number `update` (from 1) in all three sinks."""
        if not self._is_main:
            return
        assert self._file is not None, "log() belongs inside the with block"
        metrics = {**metrics, **self._between(metrics)}
        self._file.write(_encode(_record(metrics) | {"update": update}))
        self._file.flush()
        if self._board is not None:
            self._board.log(update, metrics)
        self._screen.update(update, metrics)

    def log_later(self, update: int, metrics: Mapping[str, float]) -> None:
        """Add what was measured after the line of `update` was written, to that line and to TensorBoard; update 0 has no line."""
        if not self._is_main:
            return
        assert self._file is not None, "log_later() belongs inside the with block"
        path = self._run_dir / "metrics.jsonl"
        self._file.close()
        amend_line(path, update, _record(metrics))
        self._file = path.open("a")
        if self._board is not None:
            self._board.scalars(update, metrics)

    def sample(self, sample: Sample) -> None:
        """Keep a response with the KL of its tokens in samples.jsonl, and show it in TensorBoard."""
        if not self._is_main:
            return
        with (self._run_dir / SAMPLES).open("a") as file:
            file.write(_encode(record_of(sample)))
        if self._board is not None:
            self._board.sample(sample)

    def message(self, text: str) -> None:
        """Say something to the person who watches, above the progress bar if there is one."""
        if self._is_main:
            self._screen.message(text)

    @property
    def for_people(self) -> bool:
        """Whether a person reads the console, and no program."""
        return self._screen.for_people

    @property
    def width(self) -> int | None:
        """Columns of the terminal; None without one."""
        return self._screen.width

    def _between(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Seconds between the updates, since the last log(); nothing before the first one of this process."""
        before, self._logged = self._logged, time.monotonic()
        if before is None or "time/step" not in metrics:
            return {}
        return {"time/between": max(0.0, self._logged - before - metrics["time/step"])}

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self.message(text)
