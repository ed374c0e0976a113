"""The quickstart's picture: a column a task, a row a question about exposure control. Needs matplotlib (the `plots` extra).

1. What was learned?  2. How much did each arm show?  3. By what did the controller choose?  4. Which problems does it matter for?
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from megatron_atesd.errors import DataError
from megatron_atesd.report.legend import scores_of
from megatron_atesd.report.pictures import GRID, INK, MUTED, PALETTE, draw_series, new_figure, save, tidy
from megatron_atesd.report.run_figures import Metrics, colours, load_metrics

Evaluation = Mapping[str, Any]
Arms = Mapping[str, Mapping[str, Any]]  # by name: `run`, `base` and `final`
Panel = Callable[[Axes], None]

TITLE = "How much of a worked solution should the teacher see?"
SUBTITLE = "One base model, the same problems and updates. Each colour is a rule for α, the share of the reference that the teacher sees."
TASKS = {
    "late": "references skip steps of long chains",
    "det": "references write every step",
    "lateh": "references skip steps of the longest chains",
    "rand": "references skip steps anywhere",
}
ARMS = {"fixed": "α = 1", "random": "random α", "learned": "learned (paper)"}
_SHADES = LinearSegmentedColormap.from_list("score", ["white", PALETTE[0]])
_SMOOTHED_SHARE = 10  # α: trailing mean over 1/10 of the updates
_COLUMN, _ROW, _HEAD = 5.6, 2.7, 1.1  # inches


def quickstart_report(summary: Mapping[str, Any], out: Path) -> None:
    """Draw the quickstart's picture to `out` (.png, .svg or .pdf).

    summary: evaluations before and after the training of each arm, as `average.summarize` returns them (more keys do no harm):

        {"tasks": {TASK: {ARM: {"run": RUN DIRECTORY, "base": EVALUATION, "final": EVALUATION}, …}, …}}
        EVALUATION = {"average_at_k": share, "ci95": [low, high], "greedy": share or null, "by_difficulty": {LABEL: {the same}, …}}

    The tasks share one base. Raises DataError when a part of the summary, or of a run's metrics, is missing.
    """
    save(quickstart_figure(summary), out)


def quickstart_figure(summary: Mapping[str, Any]) -> Figure:
    """The figure that `quickstart_report` writes."""
    tasks: Mapping[str, Arms] = summary.get("tasks") or {}
    if not all([tasks, *tasks.values()]):
        raise DataError("the summary has a task without arms, or no tasks: each needs at least one evaluated arm, with `base` and `final`")
    for task, arms in tasks.items():
        for name, arm in arms.items():
            _check_arm(f"tasks.{task}.{name}", arm)
    colour_of = colours(dict.fromkeys(name for arms in tasks.values() for name in arms))
    placed = _places([_column(task, arms, colour_of) for task, arms in tasks.items()])
    rows, columns = (1 + max(place[axis] for place in placed) for axis in (0, 1))
    figure = new_figure(_COLUMN * columns, _ROW * rows + _HEAD)
    head, body = figure.subfigures(2, 1, squeeze=False, height_ratios=[_HEAD, _ROW * rows])[:, 0]
    _explain(head, next(iter(next(iter(tasks.values())).values()))["base"], colour_of)
    grid = body.add_gridspec(rows, columns, hspace=0.05, wspace=0.05)
    for place, draw in placed.items():
        draw(body.add_subplot(grid[place]))
    return figure


def _places(columns: Sequence[Sequence[Panel]]) -> dict[tuple[int, int], Panel]:
    """Row and column of each panel; those of a single task go from left to right in two columns."""
    if len(columns) == 1:
        return {divmod(i, 2): draw for i, draw in enumerate(columns[0])}
    return {(y, x): draw for x, panels in enumerate(columns) for y, draw in enumerate(panels)}


def _explain(head: SubFigure, base: Evaluation, colour_of: Mapping[str, str]) -> None:
    """What is compared, and the colour of each arm."""
    head.text(0.012, 0.95, TITLE, va="top", fontsize=15, fontweight="bold", color=INK)
    head.text(0.012, 0.62, SUBTITLE, va="top", fontsize=10, color=INK)
    handles = [Line2D([], [], color=MUTED, linewidth=2.5, linestyle="--", label=f"before training: {100 * base['average_at_k']:.1f}")]
    handles += [Line2D([], [], color=colour, linewidth=2.5, label=arm_label(name)) for name, colour in colour_of.items()]
    head.legend(handles=handles, loc="lower left", ncols=6, frameon=False, fontsize=10, labelcolor=INK)


def arm_label(name: str) -> str:
    """An arm's name for people."""
    return ARMS.get(name, name)


def _column(task: str, arms: Arms, colour_of: Mapping[str, str]) -> list[Panel]:
    """A task's panels from top to bottom; the third is missing when no arm has scores."""
    metrics = {name: load_metrics(Path(arm["run"])) for name, arm in arms.items()}
    panels: list[Panel] = [
        lambda axes: draw_arms(axes, task, arms, colour_of),
        lambda axes: draw_exposure(axes, metrics, colour_of),
    ]
    scored = [name for name, run in metrics.items() if scores_of(run)]
    if scored:
        panels.append(lambda axes: draw_scores(axes, scored[0], metrics[scored[0]]))
    return [*panels, lambda axes: draw_by_difficulty(axes, {name: arms[name] for name in _compared(arms)}, colour_of)]


def draw_arms(axes: Axes, task: str, arms: Arms, colour_of: Mapping[str, str]) -> None:
    """Accuracy after training: a bar an arm (sampled, with its 95 % interval) and a diamond (greedy); dashed: the base, sampled."""
    base = next(iter(arms.values()))["base"]
    axes.axvspan(*(100 * end for end in base["ci95"]), color=MUTED, alpha=0.15, linewidth=0)
    axes.axvline(100 * base["average_at_k"], color=MUTED, linewidth=1.6, linestyle="--")
    for row, (name, arm) in enumerate(arms.items()):
        final = arm["final"]
        share, low, high = (100 * final["average_at_k"], *(100 * end for end in final["ci95"]))
        axes.barh(row, share, height=0.62, color=colour_of[name], alpha=0.85, label=name)
        axes.plot([low, high], [row, row], color=INK, linewidth=1.4, solid_capstyle="butt")
        axes.text(1.5, row, f"{share:.1f}", va="center", ha="left", fontsize=10, fontweight="bold", color="white")
        if final["greedy"] is not None:
            axes.plot(100 * final["greedy"], row, "D", markersize=6, markerfacecolor="white", markeredgewidth=1.6, color=colour_of[name])
    tidy(axes, f"{task}: {TASKS.get(task, '')}\n", "accuracy, %: bars sampled (line 95 %), diamonds greedy")
    axes.text(0, 1.06, _gains(arms), transform=axes.transAxes, fontsize=10, color=INK)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_yticks(range(len(arms)), [arm_label(name) for name in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_xlim(0, 102)


def _gains(arms: Arms) -> str:
    """What training changed in the first arm and at α = 1, in points of sampled accuracy."""
    points = {name: 100 * (arm["final"]["average_at_k"] - arm["base"]["average_at_k"]) for name, arm in arms.items()}
    return "gain over the base: " + ", ".join(f"{arm_label(name)} {points[name]:+.1f}" for name in _compared(arms)) + " points"


def _compared(arms: Arms) -> list[str]:
    """The first arm and full exposure, of what there is."""
    return [name for name in dict.fromkeys([next(iter(arms)), "fixed"]) if name in arms]


def draw_exposure(axes: Axes, metrics: Mapping[str, Metrics], colour_of: Mapping[str, str]) -> None:
    """α of every arm over updates, as a trailing mean over the pale values."""
    for name, run in reversed(list(metrics.items())):  # the first arm on top
        draw_series(axes, run["update"], run["exposure/alpha"], colour_of[name], name, max(1, len(run["update"]) // _SMOOTHED_SHARE))
    tidy(axes, "What the teacher was shown: α", "update", "α, trailing mean")
    axes.set_ylim(-0.04, 1.06)


def draw_scores(axes: Axes, name: str, run: Metrics) -> None:
    """A controller's scores of each α over updates, from the worst (white) to the best (dark) of the update; the line: the α used."""
    scores = scores_of(run)
    alphas = np.array(sorted(scores))
    shade = relative_scores(np.stack([scores[alpha] for alpha in alphas.tolist()]))
    updates = run["update"]
    axes.pcolormesh(_edges(updates), _edges(alphas), np.ma.masked_invalid(shade), cmap=_SHADES, vmin=0, vmax=1.25)
    halo = [withStroke(linewidth=4.5, foreground="white")]
    axes.step(updates, run["exposure/alpha"], where="mid", color=INK, linewidth=1.8, path_effects=halo, label="α used")
    tidy(axes, f"Scores of `{name}` (dark: best) and the α used", "update", "α")
    axes.grid(visible=False)
    axes.set_yticks(alphas if len(alphas) < 8 else np.linspace(alphas[0], alphas[-1], 5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.set_xlim(updates[0] - 0.5, updates[-1] + 0.5)


def relative_scores(scores_GU: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores of G exposures at U updates, each update stretched from 0 (its worst) to 1 (its best); NaN where all are equal or unknown."""
    low, high = scores_GU.min(axis=0), scores_GU.max(axis=0)
    spread = np.where(high > low, high - low, np.nan)
    return (scores_GU - low) / spread


def draw_by_difficulty(axes: Axes, arms: Arms, colour_of: Mapping[str, str]) -> None:
    """Sampled accuracy of the base (dashed) and of some arms by difficulty, with 95 % bars; without difficulties all are one bin."""
    lines = {"base": next(iter(arms.values()))["base"]} | {name: arm["final"] for name, arm in arms.items()}
    bins = {name: evaluation.get("by_difficulty") or {"all": evaluation} for name, evaluation in lines.items()}
    labels = list(bins["base"])
    for place, (name, parts) in enumerate(bins.items()):
        where = np.arange(len(labels)) + (place - (len(bins) - 1) / 2) * 0.12
        share = np.array([parts[label]["average_at_k"] for label in labels])
        ends = np.array([parts[label]["ci95"] for label in labels]).T
        bars = 100 * np.maximum(0.0, np.stack([share - ends[0], ends[1] - share]))
        colour, style = (MUTED, "--") if name == "base" else (colour_of[name], "-")
        axes.errorbar(where, 100 * share, yerr=bars, color=colour, linestyle=style, marker="o", markersize=5, linewidth=1.5, label=name)
    tidy(axes, "Sampled accuracy by number of operations", "operations in the chain", "%, and 95 % interval")
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_ylim(-3, 103)


def _edges(centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cell borders around increasing centres, halfway between them."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def _check_arm(place: str, arm: Mapping[str, Any]) -> None:
    for phase in ("base", "final"):
        evaluation = arm.get(phase) or {}
        parts = {"": evaluation} | {f".by_difficulty.{label}": part for label, part in evaluation.get("by_difficulty", {}).items()}
        for part_name, part in parts.items():
            missing = [key for key in ("average_at_k", "ci95", "greedy", "greedy_ci95") if key not in part]
            if missing:
                raise DataError(f"summary {place}.{phase}{part_name} lacks {', '.join(missing)}: write it with average.summarize")
    if list(arm["base"].get("by_difficulty", {})) != list(arm["final"].get("by_difficulty", {})):
        raise DataError(f"summary {place}: base and final have different difficulties; evaluate both on the same problems")
