"""Pictures of finished runs: what happened during training, and what it changed. Needs matplotlib (the `plots` extra)."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from megatron_atesd.errors import DataError
from megatron_atesd.report.pictures import GRID, INK, MUTED, PALETTE, draw_beta, draw_series, new_figure, save, tidy, tidy_beta

Metrics = dict[str, NDArray[np.float64]]
Panel = Callable[[Axes], None]
# metric → title, unit, whether it is noisy from update to update
CURVES = {
    "distill/kl": ("Teacher–student KL", "nats per token", True),
    "exposure/alpha": ("Reveal ratio", "α", True),
    "probe/nll": ("Probe NLL of the reference solutions", "nats per token", False),
}
BEFORE, AFTER = MUTED, PALETTE[0]
_SMOOTHED_SHARE = 10  # noisy curves: trailing mean over 1/10 of the updates
_PANEL = (5.6, 3.5)  # inches


def load_metrics(run: Path) -> Metrics:
    """Each metric of RUN/metrics.jsonl as a float64 array [updates], NaN where a line lacks it, with the key `update`.

    Raises DataError for a missing or empty file, and for a line that is no object of numbers and nulls with an `update`.
    """
    path = run / "metrics.jsonl"
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): give the run directory of a training run") from None
    lines = [_metrics_of(text, f"{path}:{number}") for number, text in enumerate(texts, 1)]
    if not lines:
        raise DataError(f"{path} is empty: the run has finished no update yet")
    names = sorted({name for line in lines for name in line})
    return {name: np.array([np.nan if line.get(name) is None else line[name] for line in lines], dtype=np.float64) for name in names}


def _metrics_of(text: str, place: str) -> dict[str, float | None]:
    """One line of metrics.jsonl."""
    try:
        metrics = json.loads(text)
    except json.JSONDecodeError:
        raise DataError(f"{place}: {text[:40]!r} is not JSON: resume the run, which drops a torn line, or remove it") from None
    if not isinstance(metrics, dict):
        raise DataError(f"{place}: expected a JSON object of metrics, found {type(metrics).__name__}: remove the line")
    wrong = [name for name, value in metrics.items() if not (value is None or isinstance(value, int | float))]
    if wrong:
        raise DataError(f"{place}: {wrong[0]} is {metrics[wrong[0]]!r}, must be a number or null: mend or remove the line")
    if metrics.get("update") is None:
        raise DataError(f"{place}: has no `update`: mend or remove the line")
    return metrics


def run_figure(runs: Mapping[str, Path]) -> Figure:
    """KL, α, probe NLL, and the Beta density at the start (dashed) and end, one colour a run, for any number of runs.

    Panels whose metric no run has are left out (a fixed exposure has no density). Raises DataError for an unusable run.
    """
    metrics = _load_all(runs)
    present = [name for name in CURVES if any(name in run for run in metrics.values())]
    panels: list[Panel] = [lambda axes, name=name: draw_curves(axes, metrics, name) for name in present]
    if learned_runs(metrics):
        panels.append(lambda axes: draw_policies(axes, metrics, learned_runs(metrics)))
    return _compose(panels, list(runs))


def quickstart_report(summary: Mapping[str, Any], runs: Mapping[str, Path], out: Path) -> None:
    """Draw the quickstart's picture to `out` (.png, .svg or .pdf).

    runs: run directory of each arm that was trained, by the arm's name. summary: evaluations by arm before and after training, each as
    `average.summarize` returns it (more keys do no harm):

        {"arms": {NAME: {"run": PATH, "base": EVALUATION, "final": EVALUATION}, …}}
        EVALUATION = {"average_at_k": share, "ci95": [low, high], "greedy": share or null, "greedy_ci95": [low, high] or null,
                      "by_difficulty": {LABEL: {the same four}, …}}

    Panels: accuracy before and after by difficulty (of the learned arm, else the first), accuracy by arm when there are several, KL, α,
    the learned arm's Beta density, probe NLL. Raises DataError when a part of the summary is missing.
    """
    save(quickstart_figure(summary, runs), out)


def quickstart_figure(summary: Mapping[str, Any], runs: Mapping[str, Path]) -> Figure:
    """The figure that `quickstart_report` writes."""
    arms = summary.get("arms") or {}
    if not arms:
        raise DataError("the summary has no arms: it needs at least one evaluated arm, with `base` and `final`")
    for name, arm in arms.items():
        _check_arm(name, arm)
    metrics = _load_all(runs)
    learned = [name for name in learned_runs(metrics) if name in arms]
    shown = learned[0] if learned else next(iter(arms))
    panels: list[Panel] = [lambda axes: draw_by_difficulty(axes, arms[shown], f"Accuracy by difficulty ({shown})")]
    if len(arms) > 1:
        panels.append(lambda axes: draw_arms(axes, arms, colours(metrics)))
    panels += [lambda axes: draw_curves(axes, metrics, "distill/kl"), lambda axes: draw_curves(axes, metrics, "exposure/alpha")]
    if learned:
        panels.append(lambda axes: draw_policies(axes, metrics, [shown]))
    if not learned or len(arms) > 1:
        panels.append(lambda axes: draw_curves(axes, metrics, "probe/nll"))
    return _compose(panels, list(runs))


def colours(names: Iterable[str]) -> dict[str, str]:
    """One colour a name, in order, the same in every panel."""
    return dict(zip(names, cycle(PALETTE)))


def learned_runs(metrics: Mapping[str, Metrics]) -> list[str]:
    """The runs that had a Beta policy."""
    return [name for name, run in metrics.items() if "exposure/a" in run and "exposure/b" in run]


def draw_curves(axes: Axes, metrics: Mapping[str, Metrics], name: str) -> None:
    """One metric of every run that has it, over updates."""
    title, ylabel, noisy = CURVES[name]
    windows = {run: max(1, len(m["update"]) // _SMOOTHED_SHARE) if noisy else 1 for run, m in metrics.items() if name in m}
    for run, window in windows.items():
        draw_series(axes, metrics[run]["update"], metrics[run][name], colours(metrics)[run], run, window)
    tidy(axes, title + (", trailing mean" if max(windows.values(), default=1) > 1 else ""), "update", ylabel)
    if name == "exposure/alpha":
        axes.set_ylim(-0.04, 1.04)


def draw_policies(axes: Axes, metrics: Mapping[str, Metrics], names: Sequence[str]) -> None:
    """The Beta density of each named run at its first (dashed) and last decision."""
    for name in names:
        pairs = np.column_stack([metrics[name]["exposure/a"], metrics[name]["exposure/b"]])
        known = pairs[~np.isnan(pairs).any(axis=1)].tolist()
        prefix = f"{name}, " if len(names) > 1 else ""
        for word, (a, b) in zip(("start", "end"), (*known[:1], *known[-1:]), strict=False):
            draw_beta(axes, a, b, colours(metrics)[name], f"{prefix}{word}: Beta({a:.2f}, {b:.2f})", dashed=word == "start")
    tidy_beta(axes, "Exposure policy, " + (names[0] if len(names) == 1 else "start and end"))


def draw_by_difficulty(axes: Axes, arm: Mapping[str, Any], title: str) -> None:
    """Accuracy before (grey) and after (blue) training by difficulty, sampled (discs) and greedy (diamonds), 95 % bars.

    Without difficulties, all problems are one bin.
    """
    bins = {phase: arm[phase].get("by_difficulty") or {"all": arm[phase]} for phase in ("base", "final")}
    labels = list(bins["final"])
    for place, (kind, (phase, colour)) in enumerate(product(("sampled", "greedy"), (("base", BEFORE), ("final", AFTER)))):
        parts = [bins[phase][label] for label in labels]
        where = [index + (place - 1.5) * 0.17 for index in range(len(labels))]
        _draw_shares(axes, where, parts, kind, colour, f"{'before' if phase == 'base' else 'after'}, {kind}")
    tidy(axes, title, "difficulty", "accuracy, % (bars: 95 % interval)")
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_ylim(-3, 105)
    axes.legend(frameon=False, fontsize=9, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.17), handletextpad=0.2, columnspacing=1.0)


def draw_arms(axes: Axes, arms: Mapping[str, Mapping[str, Any]], colour_of: Mapping[str, str]) -> None:
    """Accuracy of the base model and of each arm after training, sampled (discs, with the value) and greedy (diamonds), 95 % bars."""
    rows = [("before training", next(iter(arms.values()))["base"], BEFORE)]
    rows += [(name, arm["final"], colour_of.get(name, INK)) for name, arm in arms.items()]
    for row, (_, evaluation, colour) in enumerate(rows):
        for kind, shift in (("sampled", -0.14), ("greedy", 0.16)):
            _draw_shares(axes, [row + shift], [evaluation], kind, colour, kind if row == 0 else None, sideways=True)
        share = 100 * evaluation["average_at_k"]
        axes.annotate(f"{share:.1f}", (share, row - 0.14), (0, 6), textcoords="offset points", ha="center", fontsize=9, color=INK)
    tidy(axes, "Accuracy by arm", "accuracy, % (bars: 95 % interval)")
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.6)
    axes.set_xlim(-3, 105)
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.17), handletextpad=0.2)


def _draw_shares(
    axes: Axes,
    where: Sequence[float],
    parts: Sequence[Mapping[str, Any]],
    kind: str,
    colour: str,
    label: str | None,
    sideways: bool = False,
) -> None:
    """Points in percent with 95 % bars at `where`; evaluations without a greedy answer are left out."""
    points = [
        (place, *_share_and_interval(part, kind))
        for place, part in zip(where, parts, strict=True)
        if kind == "sampled" or part["greedy"] is not None
    ]
    if not points:
        return
    place, share, low, high = (np.array(column, dtype=np.float64) for column in zip(*points, strict=True))
    bars = 100 * np.maximum(0.0, np.stack([share - low, high - share]))
    x, y = (100 * share, place) if sideways else (place, 100 * share)
    style = {"fmt": "o", "markersize": 6} if kind == "sampled" else {"fmt": "D", "markersize": 5.5, "markerfacecolor": "white"}
    axes.errorbar(x, y, **{"xerr" if sideways else "yerr": bars}, color=colour, elinewidth=1.3, markeredgewidth=1.4, label=label, **style)


def _share_and_interval(part: Mapping[str, Any], kind: str) -> tuple[float, float, float]:
    if kind == "sampled":
        return (part["average_at_k"], *part["ci95"])
    return (part["greedy"], *part["greedy_ci95"])


def _check_arm(name: str, arm: Mapping[str, Any]) -> None:
    for phase in ("base", "final"):
        evaluation = arm.get(phase) or {}
        parts = {"": evaluation} | {f".by_difficulty.{label}": part for label, part in evaluation.get("by_difficulty", {}).items()}
        for place, part in parts.items():
            missing = [key for key in ("average_at_k", "ci95", "greedy", "greedy_ci95") if key not in part]
            if missing:
                raise DataError(f"summary arms.{name}.{phase}{place} lacks {', '.join(missing)}: write it with average.summarize")
    if list(arm["base"].get("by_difficulty", {})) != list(arm["final"].get("by_difficulty", {})):
        raise DataError(f"summary arms.{name}: base and final have different difficulties; evaluate both on the same problems")


def _load_all(runs: Mapping[str, Path]) -> dict[str, Metrics]:
    return {name: load_metrics(Path(path)) for name, path in runs.items()}


def _compose(panels: Sequence[Panel], names: Sequence[str]) -> Figure:
    """The panels in two columns (an odd last one over both), with one legend of the runs above when there are several."""
    rows = (len(panels) + 1) // 2
    figure = new_figure(2 * _PANEL[0], rows * _PANEL[1])
    grid = figure.add_gridspec(rows, 2, hspace=0.06, wspace=0.04)
    for place, draw in enumerate(panels):
        wide = place == len(panels) - 1 and place % 2 == 0
        draw(figure.add_subplot(grid[place // 2, :] if wide else grid[place // 2, place % 2]))
    if len(names) > 1:
        lines = [Line2D([], [], color=colour, linewidth=2.5, label=name) for name, colour in colours(names).items()]
        figure.legend(handles=lines, loc="outside upper left", ncols=min(len(lines), 6), frameon=False, fontsize=10, labelcolor=INK)
    return figure
