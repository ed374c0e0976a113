"""What a run tells while it runs: metrics.jsonl, TensorBoard, and one console line an update.

    with Monitor(run_dir, total_updates=100, config=config.monitor, is_main=is_main(), start=0) as monitor:
        monitor.log(1, {"distill/loss": 0.3, …})

metrics.jsonl holds one JSON object an update with sorted keys and `"update"`; a value that is not finite is null (JSON has no NaN).
"""

import importlib.util
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from megatron_atesd.config import MonitorConfig
from megatron_atesd.report.screen import Screen

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter

Value = TypeVar("Value")
SCORE = "controller/score/"  # and an α: what a controller thinks of it, higher is better


def scores_of(metrics: Mapping[str, Value]) -> dict[float, Value]:
    """The metrics that are a controller's scores, by α; {} of modes that have none."""
    return {float(name.removeprefix(SCORE)): value for name, value in metrics.items() if name.startswith(SCORE)}


def keep_lines_until(path: Path, update: int) -> list[dict[str, Any]]:
    """Cut metrics.jsonl back to the updates up to `update` and return them; a line torn by a killed run goes too.

    update = 0 keeps nothing: the run starts anew. The file is replaced in one step, so a crash leaves the old or the new one.
    """
    if not path.exists():
        return []
    kept = [] if update == 0 else [line for line in map(_decode, path.read_text().splitlines()) if line and line["update"] <= update]
    _replace_lines(path, kept)
    return kept


def amend_line(path: Path, update: int, more: Mapping[str, float | None]) -> None:
    """Add values to the line of one update in metrics.jsonl, if there is one; the file is replaced in one step."""
    lines = [line for line in map(_decode, path.read_text().splitlines()) if line]
    _replace_lines(path, [{**line, **more} if line["update"] == update else line for line in lines])


def _replace_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
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
        self._alphas: list[float] = []
        self._file: TextIO | None = None
        self._writer: SummaryWriter | None = None
        self._screen = Screen(total_updates, start, config.console)
        self._told: set[str] = set()
        self._logged: float | None = None  # the moment of the last log()

    def __enter__(self) -> "Monitor":
        if not self._is_main:
            return self
        self._run_dir.mkdir(parents=True, exist_ok=True)
        path = self._run_dir / "metrics.jsonl"
        kept = keep_lines_until(path, self._start)
        self._alphas = [line["exposure/alpha"] for line in kept if line.get("exposure/alpha") is not None]
        self._file = path.open("a")
        if self._config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._run_dir / "tensorboard"), purge_step=self._start + 1 if self._start else 0)
        self._screen.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._screen.stop()
        if self._writer is not None:
            self._writer.close()
        if self._file is not None:
            self._file.close()

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of finished update number `update` (from 1) in all three sinks; draws the exposure when it is due."""
        if not self._is_main:
            return
        assert self._file is not None, "log() belongs inside the with block"
        metrics = {**metrics, **self._between(metrics)}
        self._file.write(_encode(_record(metrics) | {"update": update}))
        self._file.flush()
        if self._writer is not None:
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, update)
        self._screen.update(update, metrics)
        if "exposure/alpha" in metrics:
            self._alphas.append(float(metrics["exposure/alpha"]))
        due = self._config.figure_every and update % self._config.figure_every == 0
        if due and "exposure/a" in metrics:
            self.figure(update, float(metrics["exposure/a"]), float(metrics["exposure/b"]), self._alphas)
        if due and (scores := scores_of(metrics)):
            self.scores(update, scores, float(metrics["exposure/alpha"]), metrics.get("controller/posterior_sd"))

    def log_later(self, update: int, metrics: Mapping[str, float]) -> None:
        """Add what was measured after the line of `update` was written, to that line and to TensorBoard; update 0 has no line."""
        if not self._is_main:
            return
        assert self._file is not None, "log_later() belongs inside the with block"
        path = self._run_dir / "metrics.jsonl"
        self._file.close()
        amend_line(path, update, _record(metrics))
        self._file = path.open("a")
        if self._writer is not None:
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, update)

    def figure(self, update: int, a: float, b: float, alphas: Sequence[float]) -> None:
        """Put a picture of the policy's density Beta(a, b) and the α used so far into TensorBoard; without matplotlib, say so once."""
        self._draw("exposure/policy", update, lambda pictures: pictures.beta_figure(update, a, b, alphas))

    def scores(self, update: int, scores: Mapping[float, float], alpha: float, sd: float | None = None) -> None:
        """Put a picture of the controller's scores by α, and of the α used, into TensorBoard; `sd`: of the scores, if it knows one."""
        self._draw("exposure/scores", update, lambda pictures: pictures.scores_figure(update, scores, alpha, sd))

    def _draw(self, name: str, update: int, make: Callable[[ModuleType], "Figure"]) -> None:
        if self._writer is None:
            return
        if importlib.util.find_spec("matplotlib") is None:
            self._tell_once(
                "no exposure pictures in TensorBoard: they need matplotlib (pip install -e '.[plots]' in this project's checkout)"
            )
            return
        from megatron_atesd.report import pictures

        self._writer.add_figure(name, make(pictures), update)

    def message(self, text: str) -> None:
        """Say something to the person who watches, above the progress bar if there is one."""
        if self._is_main:
            self._screen.message(text)

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
