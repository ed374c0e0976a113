"""The pictures of docs/exposure.md: what each exposure shows, and what it did to a student. Needs matplotlib (the `plots` extra).

python tools/make_docs.py --pictures
"""

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from numpy.typing import NDArray

from megatron_atesd.data.reveal import reveal, split_reference
from megatron_atesd.records import Problem
from megatron_atesd.report.pictures import INK, MUTED, PALETTE, new_figure, tidy

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
EXAMPLE = Problem(
    "example",
    "A hall has 14 rows of 12 seats. 9 seats are broken and 30 tickets are left. How many tickets were sold?",
    "There are 14 · 12 = 168 seats.\n\n168 − 9 = 159 seats can be used.\n\n30 of these tickets are left.\n\n159 − 30 = 129 were sold."
    "\n\n\\boxed{129}",
    "129",
)
SHOWN, HIDDEN, ANSWER = "#FFF3C4", "#F2F2F2", "#DDFBE6"
TASKS = {"late": ("references skip steps of long chains", PALETTE[1]), "det": ("references write every step", PALETTE[0])}
_Curve = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def reveal_figure(problem: Problem = EXAMPLE) -> Figure:
    """A row for each α: the segments of the reference that the teacher sees, those that it does not, and the answer."""
    reference = split_reference(problem)
    figure = new_figure(10.5, 3.9)
    axes = figure.subplots()
    for row, alpha in enumerate(ALPHAS):
        shown = reveal(problem, alpha, "nearest").revealed
        axes.text(-0.08, row, f"α = {alpha:g}", ha="right", va="center", fontsize=10, color=INK)
        for place, segment in enumerate(reference.segments):
            _draw_cell(axes, place, row, segment.strip() if place < shown else "hidden", SHOWN if place < shown else HIDDEN)
        _draw_cell(axes, len(reference.segments), row, problem.answer, ANSWER)
    for place in range(len(reference.segments)):
        axes.text(place + 0.48, -0.72, f"segment {place + 1}", ha="center", fontsize=9, color=MUTED)
    axes.text(len(reference.segments) + 0.48, -0.72, "answer: always shown", ha="center", fontsize=9, color=MUTED)
    axes.set_title(
        "What the teacher sees besides the question, by exposure α", loc="left", fontsize=12, fontweight="bold", color=INK, pad=14
    )
    axes.set_xlim(-0.6, len(reference.segments) + 1)
    axes.set_ylim(len(ALPHAS) - 0.4, -1)
    axes.axis("off")
    return figure


def _draw_cell(axes: Axes, place: int, row: int, words: str, colour: str) -> None:
    axes.add_patch(
        FancyBboxPatch((place, row - 0.36), 0.96, 0.72, boxstyle="round,pad=0,rounding_size=0.06", facecolor=colour, linewidth=0)
    )
    pale = colour == HIDDEN
    axes.text(
        place + 0.48,
        row,
        textwrap.fill(words, 19),
        ha="center",
        va="center",
        fontsize=8.5,
        color="#B5B5B5" if pale else INK,
        linespacing=1.1,
    )


def exposure_effect_figure(results: Mapping[str, Any]) -> Figure:
    """Gain of accuracy, and fall of the references' NLL, after the same updates at each α; mean ± standard error over bases.

    results: results.json of a study with checks of signals.
    """
    checks = [check for check in results["checks"] if check["lead"] == 0]
    bases, updates = len({check["base"] for check in checks}), checks[0]["updates"]
    figure = new_figure(10.5, 3.9)
    gain, fall = figure.subplots(1, 2)
    for task, (words, colour) in TASKS.items():
        for axes, curve in ((gain, _curve(checks, task, "accuracy", 100)), (fall, _curve(checks, task, "probe_nll", -1))):
            alpha, mean, error = curve
            axes.errorbar(alpha, mean, yerr=error, color=colour, marker="o", linewidth=2, capsize=2, label=words)
    tidy(gain, "What the student gained", "exposure α", f"accuracy after {updates} updates, points gained")
    tidy(fall, "What the paper's signal says", "exposure α", "fall of the references' NLL, nats per token")
    gain.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper left")
    figure.text(0.99, 0.005, f"{bases} bases, mean ± standard error", ha="right", fontsize=8, color=MUTED)
    return figure


def _curve(checks: Iterable[Mapping[str, Any]], task: str, name: str, scale: float) -> _Curve:
    """α, mean and standard error over bases of one change."""
    by_base = [{row["alpha"]: scale * row[name] for row in check["changes"]} for check in checks if check["task"] == task]
    alphas = sorted(by_base[0])
    values = np.array([[found[alpha] for alpha in alphas] for found in by_base])
    return np.array(alphas), values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))
