"""The pictures of a study, each readable without a caption. Needs matplotlib (the `plots` extra)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from megatron_atesd.report.pictures import GRID, INK, MUTED, PALETTE, new_figure, tidy, trailing_mean
from megatron_atesd.study.comparison import mean_and_error, of_arm, signal_points
from megatron_atesd.study.signals import correlations, falls_and_gains

Record = Mapping[str, Any]
SIGNALS = {
    "probe/nll": "NLL of the references, nats a token",
    "distill/kl": "KL to the teacher, nats a token",
    "student/entropy": "student's entropy, nats",
    "rollout/accuracy": "accuracy of the training rollouts, points",
}
_MARKERS = ("s", "D", "^", "v", "P", "X", "*")
_COLOURS = len(PALETTE) - 1  # without black, which is the curve's: 6 colours and 7 markers make 42 pairs
_STYLES = ("-", "--", ":", "-.")
_SHADES = LinearSegmentedColormap.from_list("difficulty", ["#9CC9E3", "#0072B2", "#001F33"])
_PANEL, _ROW, _COLUMNS = 5.2, 3.9, 2  # inches
_SMOOTHED_SHARE = 10  # α: trailing mean over 1/10 of the updates


def figures(results: Record, comparison: Record) -> dict[str, Figure]:
    """By name, those that there is something for."""
    found = {
        "accuracy_by_arm": arms_figure(comparison),
        "accuracy_against_alpha": accuracy_figure(results, comparison),
        "accuracy_by_difficulty": difficulty_figure(results, comparison),
        "mismatch_against_alpha": mismatch_figure(results, comparison),
        "alpha_over_updates": exposure_figure(results, comparison),
        "signals_against_gain": gains_figure(results),
        "signals_against_accuracy": signals_figure(results),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def arms_figure(comparison: Record) -> Figure | None:
    """A panel a task: accuracy of every arm, the best on top, and of the base."""
    if not comparison:
        return None
    rows = max(len(part["arms"]) for part in comparison.values())
    figure, panels = _panels(len(comparison), "Accuracy after training by arm, ± standard error", 1.1 + 0.24 * rows)
    for axes, (task, part) in zip(panels, comparison.items(), strict=True):
        arms = sorted(part["arms"], key=lambda arm: part["arms"][arm]["mean"])
        mean, error = 100 * np.array([_filled((part["arms"][arm]["mean"], part["arms"][arm]["error"])) for arm in arms]).T
        axes.errorbar(mean, range(len(arms)), xerr=error, color=PALETTE[0], marker="o", linestyle="", capsize=2)
        _draw_before(axes.axvline, part)
        tidy(axes, task, "sampled accuracy, %")
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        axes.set_yticks(range(len(arms)), arms)
    _legend(figure, panels)
    return figure


def accuracy_figure(results: Record, comparison: Record) -> Figure | None:
    """A panel a task: the curve of fixed exposures, every other arm at its mean α, and the base."""
    if not comparison:
        return None
    figure, panels = _panels(len(comparison), "Accuracy after training against the exposure of the teacher, ± standard error")
    others = _others(results)
    for axes, (task, part) in zip(panels, comparison.items(), strict=True):
        _curve(axes, results, part, lambda row: (row["mean"], row["error"]), INK, "fixed α")
        for arm, (colour, marker) in others.items():
            if row := part["arms"].get(arm):
                bar = None if row["error"] is None else 100 * row["error"]
                style: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "", "markersize": 7, "capsize": 2}
                axes.errorbar(row["alpha"], 100 * row["mean"], yerr=bar, label=arm, **style)
        _draw_before(axes.axhline, part)
        _over_alpha(axes, task, "α (of the others: mean over updates)", "sampled accuracy, %")
    _legend(figure, panels)
    return figure


def difficulty_figure(results: Record, comparison: Record) -> Figure | None:
    """A panel a task: the curve of fixed exposures for each difficulty."""
    labels = _labels(comparison)
    if len(labels) < 2 or len(results["fixed"]) < 2:
        return None
    figure, panels = _panels(len(comparison), "Accuracy by difficulty of the problem, at fixed exposures, ± standard error")
    for axes, (task, part) in zip(panels, comparison.items(), strict=True):
        for label, colour in zip(labels, _SHADES(np.linspace(0, 1, len(labels))), strict=True):
            _curve(axes, results, part, lambda row, label=label: _of_label(row, label), colour, f"difficulty {label}")
        _over_alpha(axes, task, "α", "sampled accuracy, %")
    _legend(figure, panels)
    return figure


def mismatch_figure(results: Record, comparison: Record) -> Figure | None:
    """KL between teacher and base on the first update's responses, which all arms have in common, against α; a line a task."""
    if len(results["fixed"]) < 2 or not comparison:
        return None
    figure, (axes,) = _panels(1, "How far the teacher is from the base")
    for place, task in enumerate(comparison):
        points = []
        for arm in results["fixed"]:
            known = ((key, run["first_kl"]) for key, run in of_arm(results, task, arm).items())
            if values := {key: kl for key, kl in known if kl is not None}:
                points.append((results["arms"][arm]["alpha"], *_filled(mean_and_error(values, results["unit"]))))
        if points:
            alpha, mean, error = np.array(sorted(points)).T
            style: dict[str, Any] = {"color": PALETTE[place % len(PALETTE)], "marker": _MARKERS[place % len(_MARKERS)], "capsize": 2}
            axes.errorbar(alpha, mean, yerr=error, label=task, **style)
    _over_alpha(axes, "KL of the first update, ± standard error", "α", "nats a token")
    axes.set_ylim(bottom=0)
    _legend(figure, [axes])
    return figure


def exposure_figure(results: Record, comparison: Record) -> Figure | None:
    """A panel a task: α over updates of the arms in which it moves, mean over runs, smoothed."""
    moving = [arm for arm in results["arms"] if any(np.ptp(run["alpha"]) > 0 for run in results["runs"] if run["arm"] == arm)]
    if not moving:
        return None
    tasks = [task for task in comparison if any(of_arm(results, task, arm) for arm in moving)]
    figure, panels = _panels(len(tasks), "What the teacher was shown: α, mean over runs, trailing mean over a tenth of the updates")
    lines = _lines(results, moving)
    for axes, task in zip(panels, tasks, strict=True):
        for arm in moving:
            if runs := of_arm(results, task, arm):
                mean = np.mean([run["alpha"] for run in runs.values()], axis=0)
                colour, dashes = lines[arm]
                smooth = trailing_mean(mean, max(1, len(mean) // _SMOOTHED_SHARE))
                axes.plot(np.arange(1, len(mean) + 1), smooth, color=colour, linestyle=dashes, linewidth=1.8, label=arm)
        tidy(axes, task, "update", "α")
        axes.set_ylim(-0.04, 1.04)
    _legend(figure, panels)
    return figure


def signals_figure(results: Record) -> Figure | None:
    """A panel a signal: its value at the end against accuracy, one point a run, both less their means over the arms."""
    found = {signal: points for signal in SIGNALS if (points := signal_points(results, signal))}
    if not found:
        return None
    figure, panels = _panels(len(found), "What signals say of accuracy: a point a run, less the mean of the arms")
    for axes, (signal, tasks) in zip(panels, found.items(), strict=True):
        for place, (task, points) in enumerate(tasks.items()):
            scale = 100 if signal == "rollout/accuracy" else 1
            label = f"{task}: r = {_correlation(points)}"
            style: dict[str, Any] = {"s": 16, "alpha": 0.75, "marker": _MARKERS[place % len(_MARKERS)], "linewidth": 0}
            axes.scatter(scale * points[:, 0], 100 * points[:, 1], color=PALETTE[place % len(PALETTE)], label=label, **style)
        tidy(axes, signal, f"{SIGNALS[signal]}, at the end", "sampled accuracy, points")
        axes.locator_params(axis="x", nbins=5)  # long numbers would touch
        axes.axhline(0, color=GRID, linewidth=1)
        axes.axvline(0, color=GRID, linewidth=1)
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return figure


def gains_figure(results: Record) -> Figure | None:
    """A panel a signal: by how much it fell against what accuracy gained, a point an exposure and base, less the base's mean."""
    found = correlations(results)
    if not found:
        return None
    updates = results["checks"][0]["updates"]
    title = f"Does a signal's fall tell what accuracy gains? {updates} updates at each α, less the mean over α"
    figure, panels = _panels(len(found), title)
    for axes, (signal, places) in zip(panels, found.items(), strict=True):
        for number, ((task, lead), bases) in enumerate(falls_and_gains(results, signal).items()):
            points = np.concatenate([part - part.mean(axis=0) for part in bases.values()])
            colour = PALETTE[list(results["tasks"]).index(task) % len(PALETTE)]
            told = f", r = {places[task, lead]['mean']:+.2f}" if (task, lead) in places else ""
            style: dict[str, Any] = {"facecolors": colour if lead == 0 else "none", "edgecolors": colour}
            label = f"{task}, updates {lead + 1}–{lead + updates}{told}"
            axes.scatter(points[:, 0], 100 * points[:, 1], s=18, marker=_MARKERS[number % len(_MARKERS)], label=label, **style)
        tidy(axes, signal, "fall, nats a token", "gain of accuracy, points")
        axes.axhline(0, color=GRID, linewidth=1)
        axes.axvline(0, color=GRID, linewidth=1)
        axes.legend(frameon=False, fontsize=7.5, labelcolor=INK)
    return figure


def _draw_before(line: Callable[..., Any], part: Record) -> None:
    """The base's accuracy, if it is known."""
    if part["before"] is not None:
        line(100 * part["before"], color=MUTED, linestyle="--", linewidth=1.4, label="before training")


def _panels(count: int, title: str, height: float = _ROW) -> tuple[Figure, list[Axes]]:
    """So many panels of the given height (inches) in rows of two, under a title."""
    columns = min(count, _COLUMNS)
    rows = (count + columns - 1) // columns
    figure = new_figure(_PANEL * _COLUMNS, height * rows + 0.8)
    figure.suptitle(title, x=0.015, ha="left", fontsize=12.5, fontweight="bold", color=INK)
    grid = figure.add_gridspec(rows, columns, hspace=0.06, wspace=0.04)
    return figure, [figure.add_subplot(grid[place // columns, place % columns]) for place in range(count)]


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One for all panels, below them."""
    handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        [*handles.values()], [*handles], loc="outside lower left", ncols=5, frameon=False, fontsize=9, labelcolor=INK, columnspacing=1.4
    )


def _others(results: Record) -> dict[str, tuple[str, str]]:
    """Colour and marker of each arm that is no point of the curve."""
    names = [arm for arm in results["arms"] if arm not in results["fixed"]]
    return {arm: (PALETTE[i % _COLOURS], _MARKERS[i % len(_MARKERS)]) for i, arm in enumerate(names)}


def _lines(results: Record, arms: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and dashes of each arm's line: the colour of its points in other pictures, dashes to tell lines of one colour apart."""
    colours, lines = _others(results), dict[str, tuple[str, str]]()
    for arm in arms:
        colour = colours.get(arm, (INK, ""))[0]
        lines[arm] = colour, _STYLES[sum(colour == other for other, _ in lines.values()) % len(_STYLES)]
    return lines


def _curve(axes: Axes, results: Record, part: Record, value: Any, colour: Any, label: str) -> None:
    """Fixed arms over α; value: mean and standard error (or None) of an arm's row."""
    points = [(results["arms"][arm]["alpha"], *_filled(value(row))) for arm in results["fixed"] if (row := part["arms"].get(arm))]
    if points:
        alpha, mean, error = np.array(sorted(points)).T
        axes.errorbar(alpha, 100 * mean, yerr=100 * error, color=colour, marker="o", markersize=5, linewidth=1.8, capsize=2, label=label)


def _over_alpha(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    tidy(axes, title, xlabel, ylabel)
    axes.set_xlim(-0.04, 1.04)


def _filled(pair: tuple[float, float | None]) -> tuple[float, float]:
    """An error that is not known is drawn as none."""
    return pair[0], pair[1] or 0.0


def _labels(comparison: Record) -> list[str]:
    return list(dict.fromkeys(label for part in comparison.values() for row in part["arms"].values() for label in row["by_difficulty"]))


def _of_label(row: Record, label: str) -> tuple[float, float | None]:
    found = row["by_difficulty"].get(label, {"mean": np.nan, "error": None})
    return found["mean"], found["error"]


def _correlation(points: NDArray[np.float64]) -> str:
    if np.any(np.ptp(points, axis=0) < 1e-12):  # all alike: there is none
        return "–"
    return f"{np.corrcoef(points[:, 0], points[:, 1]).item(0, 1):+.2f}"
