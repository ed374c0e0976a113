"""The picture of the mismatch between student and teacher against the exposure. Needs matplotlib (the `plots` extra)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_atesd.report.pictures import INK, MUTED, PALETTE, new_figure, tidy

Record = Mapping[str, Any]
PANELS = {  # statistic: title, unit, factor, whether its axis begins at 0
    "kl": ("KL(teacher ‖ student)", "nats a token", 1, True),
    "disagreement": ("Most likely token differs", "% of tokens", 100, True),
    "teacher_entropy": ("Teacher's entropy", "nats a token", 1, True),
    "grounding": ("Grounding by the {}", "log-probability to the teacher, nats a token", 1, False),
}
_PANEL = (5.4, 3.7)  # inches
_CLEAR = 0.05


def mismatch_figure(record: Record) -> Figure:
    """A panel a statistic of mismatch.json, ± standard error over problems; the KL's says which steps rise."""
    there = [name for name in PANELS if name in record["rows"][0]]
    columns, rows = 2, (len(there) + 1) // 2
    figure = new_figure(columns * _PANEL[0], rows * _PANEL[1] + 0.9)
    figure.suptitle(_title(record), x=0.015, ha="left", fontsize=12, color=INK)
    grid = figure.add_gridspec(rows, columns, hspace=0.06, wspace=0.04)
    for place, name in enumerate(there):
        wide = place == len(there) - 1 and place % 2 == 0
        axes = figure.add_subplot(grid[place // 2, :] if wide else grid[place // 2, place % 2])
        _curve(axes, record, name, PALETTE[place])
    _mark_steps(figure.axes[0], record)
    return figure


def _title(record: Record) -> str:
    says = "the KL rises at every step of α" if record["monotone_p"] < _CLEAR else "not every step of the KL is a clear rise"
    of = f"{record['problems']} problems, {record['tokens']} response tokens; bars: ± standard error over problems"
    return f"Mismatch between student and teacher: {says} ({_p_text(record['monotone_p'])})\n{of}"


def _curve(axes: Axes, record: Record, name: str, colour: str) -> None:
    title, unit, factor, from_zero = PANELS[name]
    alpha, mean, error = np.array([(row["alpha"], row[name], row["errors"][name]) for row in record["rows"]]).T
    axes.errorbar(alpha, factor * mean, yerr=factor * error, color=colour, marker="o", markersize=5, linewidth=1.8, capsize=3)
    segments = record["rows"][0]["segments"]
    tidy(
        axes,
        title.format(record["settings"]["exposure"]["grounding"]),
        f"exposure α, and mean number of revealed segments (of {segments:.1f})",
        unit,
    )
    axes.set_xticks(alpha, [f"{row['alpha']:g}\n{row['revealed']:.1f}" for row in record["rows"]])
    axes.set_xlim(alpha[0] - 0.04, alpha[-1] + 0.04)
    if from_zero:
        axes.set_ylim(bottom=0)


def _mark_steps(axes: Axes, record: Record) -> None:
    """The p value of each step, beside the middle of its line."""
    for step, (low, high) in zip(record["steps"], zip(record["rows"], record["rows"][1:], strict=False), strict=True):
        place = ((step["from"] + step["to"]) / 2, (low["kl"] + high["kl"]) / 2)
        away = (6, -12) if step["rise"] > 0 else (6, 6)
        axes.annotate(_p_text(step["p_value"]), place, away, textcoords="offset points", fontsize=8, color=MUTED)


def _p_text(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"
