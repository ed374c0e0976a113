"""Pictures of runs: what happened during training, one panel a metric. Needs matplotlib (the `plots` extra)."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from megatron_atesd.errors import DataError
from megatron_atesd.report.pictures import INK, PALETTE, draw_beta, draw_series, new_figure, tidy, tidy_beta

Metrics = dict[str, NDArray[np.float64]]
Panel = Callable[[Axes], None]
# metric → title, unit, whether it is noisy from update to update
CURVES = {
    "distill/kl": ("Teacher–student KL", "nats per token", True),
    "exposure/alpha": ("Reveal ratio", "α", True),
    "probe/nll": ("Probe NLL of the reference solutions", "nats per token", False),
}
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
