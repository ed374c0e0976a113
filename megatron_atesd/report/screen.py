"""What a run's console shows: a row an update and a progress bar on a terminal, a line of values elsewhere."""

import sys
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from megatron_atesd.logs import is_told, warn_here
from megatron_atesd.report.console_lines import Columns, values_line
from megatron_atesd.report.pace import Pace, clock, left_text

Form = Literal["auto", "columns", "values"]
HEADER_EVERY = 20  # rows, so that the names of the columns stay in sight
_WARNING = "warning: "


class Screen:
    """On the rank that talks. form: of MonitorConfig.console; start: updates that are finished already."""

    def __init__(self, total: int, start: int, form: Form, console: Console | None = None) -> None:
        self._console = console or Console(markup=False, highlight=False, soft_wrap=True)
        self._total, self._start, self._rows = total, start, 0
        self._values = form == "values" or (form == "auto" and not self._console.is_terminal)
        self._columns = Columns(total, self.width)
        self._pace = Pace(total)
        self._progress: Progress | None = None

    @property
    def for_people(self) -> bool:
        """Whether updates are rows, not values."""
        return not self._values

    @property
    def width(self) -> int | None:
        """Of the terminal; None without one."""
        return self._console.width if self._console.is_terminal else None

    def start(self) -> None:
        """Updates begin: the bar appears."""
        if self._console.is_terminal and is_told():
            self._progress = _progress(self._console)
            self._progress.add_task("training", total=self._total, completed=self._start, left="")
            self._progress.start()

    def stop(self) -> None:
        """No more updates: the bar ends."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def message(self, text: str) -> None:
        """Say something, above the bar if there is one. What begins with `warning: ` goes the way of all warnings."""
        if text.startswith(_WARNING):
            warn_here(text.removeprefix(_WARNING))
        elif is_told():
            self._console.print(text, soft_wrap=not self._console.is_terminal)

    def update(self, update: int, metrics: Mapping[str, float]) -> None:
        """Show a finished update and how long the rest takes."""
        self._pace.ended(update, time.monotonic(), metrics.get("time/step", 0.0))
        if not is_told():
            return
        left = self._pace.left()
        if self._values:
            self._console.print(values_line(update, self._total, metrics, clock(left)))
            return
        left_there = left_text(left, datetime.now()) if update < self._total else ""
        self._show_row(update, metrics, "" if self._progress else left_there)
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=update, left=left_there)

    def _show_row(self, update: int, metrics: Mapping[str, float], left: str) -> None:
        if self._rows % HEADER_EVERY == 0:
            self._console.print(Text(self._columns.header(metrics), style="dim"))
        self._rows += 1
        skipped = bool(metrics.get("optim/skipped"))
        note = ", ".join(text for text in ("skipped: not finite" if skipped else "", left) if text)
        self._console.print(Text(self._columns.row(update, metrics, note), style="yellow" if skipped else ""))


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[left]}"))
    # What goes elsewhere than to the terminal shall not be drawn on it.
    return Progress(*columns, console=console, transient=False, redirect_stdout=sys.stdout.isatty(), redirect_stderr=sys.stderr.isatty())
