"""The picture of a simulated study: regret against decisions, a panel a kind of student, a line a mode. Needs matplotlib (`plots`)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from megatron_atesd.report.pictures import INK, MUTED, PALETTE, new_figure, tidy
from megatron_atesd.report.simulation_tables import lengths, row_of

Record = Mapping[str, Any]
TITLE = "Which rule for exposure loses least on simulated students?"
COLUMNS, PANEL, ROW, HEAD = 3, 4.4, 3.3, 1.75  # inches
TOP = 1.45  # regrets above are named, not drawn
PALE = "#B4B4B4"
# What learns nothing, in greys.
RULES = {"fixed-0.5": (MUTED, "-"), "fixed-1": (MUTED, "--"), "random": (MUTED, ":"), "linear": (PALE, "-"), "step": (PALE, "--")}
MARKERS = "osD^vPX*"


def study_figure(results: Record) -> Figure:
    """results: what `simulation_study.results` returns."""
    students = results["students"]
    rows = -(-len(students) // COLUMNS)
    figure = new_figure(PANEL * COLUMNS, ROW * rows + HEAD)
    head, body = figure.subfigures(2, 1, squeeze=False, height_ratios=[HEAD, ROW * rows])[:, 0]
    styles = _styles(list(results["modes"]))
    _explain(head, results, styles)
    grid = body.add_gridspec(rows, COLUMNS)
    for number, student in enumerate(students):
        _panel(body.add_subplot(grid[divmod(number, COLUMNS)]), results, student, styles)
    return figure


def _styles(modes: list[str]) -> dict[str, dict[str, Any]]:
    """Line of each mode: those that learn nothing are grey and tell by shade and dashes, the others by colour and marker."""
    learning = [mode for mode in modes if mode not in RULES]
    rules = {mode: RULES[mode] for mode in modes if mode in RULES}
    found: dict[str, dict[str, Any]] = {
        mode: {"color": grey, "linestyle": dashes, "linewidth": 1.5} for mode, (grey, dashes) in rules.items()
    }
    for number, mode in enumerate(learning):
        colour, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
        found[mode] = {"color": colour, "marker": marker, "markersize": 4.5, "linewidth": 1.8}
    return {mode: found[mode] for mode in modes}


def _explain(head: SubFigure, results: Record, styles: Mapping[str, Mapping[str, Any]]) -> None:
    text = (
        "Regret: progress lost over the whole run; 0 is the best exposure at each update, 1 a random exposure (mean over "
        f"{results['seeds']} runs, bars: standard error).\nEach decision holds for {results['hold']} updates in every mode. Grey: rules "
        "that learn nothing. aligned-ρ: its scores correlate by ρ with the truth, which is an assumption."
    )
    head.text(0.012, 0.97, TITLE, va="top", fontsize=15, fontweight="bold", color=INK)
    head.text(0.012, 0.74, text, va="top", fontsize=10, color=INK, linespacing=1.4)
    handles = [Line2D([], [], label=mode, **style) for mode, style in styles.items()]
    head.legend(handles=handles, loc="lower left", ncols=6, frameon=False, fontsize=10, labelcolor=INK, handlelength=3)


def _panel(axes: Axes, results: Record, student: str, styles: Mapping[str, Mapping[str, Any]]) -> None:
    case, counts, off = results["students"][student], lengths(results), list[str]()
    flat = case["constant"] is None
    name = "saturated" if flat else "regret"
    for mode, style in styles.items():
        rows = [row for count in counts if (row := row_of(results, student, mode, count))]
        if rows:
            mean, error = np.array([(row[name], row[f"{name}_error"]) for row in rows], dtype=np.float64).T
            axes.errorbar([row["decisions"] for row in rows], mean, yerr=error, elinewidth=1, label=mode, **style)
            off += [f"{mode} {mean.min():.1f}"] if not flat and mean.min() > TOP else []
    tidy(axes, f"{student}\n", "decisions", "share of runs at an end" if flat else "regret")
    axes.text(0, 1.015, case["meaning"], transform=axes.transAxes, fontsize=9, color=INK)
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0, 1.02 if flat else TOP)
    if off:
        _note(axes, "above: " + ", ".join(off))
    if not flat and case["constant"]["regret"] > 0:
        axes.axhline(case["constant"]["regret"], color=INK, linewidth=0.8)
        axes.text(counts[0], case["constant"]["regret"] - 0.02, "best constant", va="top", fontsize=8.5, color=INK)


def _note(axes: Axes, text: str) -> None:
    """Small words in the upper right corner, readable over lines."""
    box = {"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 1}
    axes.text(0.985, 0.97, text, transform=axes.transAxes, ha="right", va="top", fontsize=8.5, color=MUTED, bbox=box, zorder=5)
