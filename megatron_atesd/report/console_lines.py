"""The console's lines of an update: aligned columns for people, `key=value` for programs; and rows of labelled text."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

GAP = "  "
_BIN_ALPHA = re.compile(r"bin(\d+)/exposure/alpha")


def number(value: float) -> str:
    """Four decimals, fewer of a large number, and the power of ten of one that would read as zero."""
    if not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 10:
        return f"{value:.4g}"
    return f"{value:.0e}" if 0 < abs(value) < 5e-5 else f"{value:.4f}"


def percent(share: float) -> str:
    return "100 %" if share >= 0.9995 else f"{100 * share:.1f} %"


def cut(share: float) -> str:
    """Whole percent; nothing where no response was cut."""
    return "" if share == 0 else "<1%" if share < 0.005 else f"{100 * share:.0f}%"


def seconds(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


@dataclass(frozen=True)
class Column:
    """metric: as in metrics.jsonl. key: its name in a line of values. header and width: of its column. form: of its cell."""

    metric: str
    key: str
    header: str
    width: int
    form: Callable[[float], str]


# In order of weight: a narrow terminal does without the last ones.
COLUMNS = (
    Column("distill/loss", "loss", "loss", 7, number),
    Column("distill/kl", "kl", "kl", 6, number),
    Column("exposure/alpha", "alpha", "α", 4, "{:.2f}".format),
    Column("rollout/accuracy", "accuracy", "right", 6, percent),
    Column("probe/nll", "probe_nll", "probe", 6, number),
    Column("rollout/length", "length", "length", 6, "{:,.0f}".format),
    Column("rollout/truncated", "truncated", "cut", 4, cut),
    Column("perf/tokens_per_second", "tokens_per_second", "tokens/s", 8, "{:,.0f}".format),
    Column("time/step", "seconds", "seconds", 7, seconds),
)


def alphas_by_bin(metrics: Mapping[str, float]) -> list[float]:
    """The α of each difficulty bin, easiest first; [] where there is one α for all."""
    found = ((match, value) for name, value in metrics.items() if (match := _BIN_ALPHA.fullmatch(name)))
    return [value for _, value in sorted((int(match[1]), value) for match, value in found)]


class Columns:
    """Rows of one width, for a person. total: updates of the run; width: of the terminal, None where nothing limits a line."""

    def __init__(self, total: int, width: int | None) -> None:
        self._total, self._width = total, width
        self._first = max(len("update"), 2 * len(str(total)) + 1)

    def header(self, metrics: Mapping[str, float]) -> str:
        """The names of the columns. metrics: of an update, for the number of difficulty bins."""
        names = [column.header.rjust(width) for column, width in self._shown(metrics)]
        return GAP.join(["update".rjust(self._first), *names])

    def row(self, update: int, metrics: Mapping[str, float], note: str = "") -> str:
        """The row of one update. A metric that was not measured leaves its place empty. note: stands at the end."""
        cells = [self._cell(column, metrics).rjust(width) for column, width in self._shown(metrics)]
        return GAP.join([f"{update}/{self._total}".rjust(self._first), *cells, *([note] if note else [])]).rstrip()

    def _shown(self, metrics: Mapping[str, float]) -> list[tuple[Column, int]]:
        bins = len(alphas_by_bin(metrics))
        shown = [(c, 5 * bins - 1 if bins and c.key == "alpha" else c.width) for c in COLUMNS]
        while self._width is not None and shown and self._first + sum(len(GAP) + width for _, width in shown) > self._width:
            shown.pop()
        return shown

    @staticmethod
    def _cell(column: Column, metrics: Mapping[str, float]) -> str:
        if column.key == "alpha" and (bins := alphas_by_bin(metrics)):
            return "/".join(map(column.form, bins))
        return column.form(metrics[column.metric]) if column.metric in metrics else ""


def values_line(update: int, total: int, metrics: Mapping[str, float], left: str = "") -> str:
    """One update as `update N/TOTAL key=value …`, for programs; left: the remaining time, as h:mm:ss."""
    pairs = [(c.key, _value(metrics[c.metric])) for c in COLUMNS if c.metric in metrics]
    pairs += [(f"alpha_bin{i}", _value(alpha)) for i, alpha in enumerate(alphas_by_bin(metrics))]
    pairs += [("skipped", "1")] if metrics.get("optim/skipped") else []
    return " ".join([f"update {update}/{total}", *(f"{key}={value}" for key, value in [*pairs, ("eta", left)] if value)])


def _value(value: float) -> str:
    """Four digits, all of a larger whole number."""
    return f"{value:.0f}" if abs(value) >= 1000 and math.isfinite(value) else f"{value:.4g}"


def labelled_lines(rows: Sequence[tuple[str, str]], width: int | None) -> str:
    """Rows of (label, text), texts below one another; wrapped at `width` unless it is None."""
    indent = max(len(label) for label, _ in rows) + len(GAP)
    return "\n".join(_wrapped(f"{label:<{indent}}", text, width, indent) for label, text in rows)


def _wrapped(label: str, text: str, width: int | None, indent: int) -> str:
    """Broken between words alone: a path or a command stays whole, so that it can be copied."""
    lines, line = list[str](), label
    for word in text.split(" "):
        empty = len(line) == indent and not line[len(label) :].strip()
        if width is not None and not empty and len(line) + 1 + len(word) > width:
            lines.append(line)
            line, empty = " " * indent, True
        line += word if empty else f" {word}"
    return "\n".join([*lines, line])
