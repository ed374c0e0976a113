"""What a whole run looks like, one picture a question, each with a sentence on how to read it. Needs matplotlib (the `plots` extra)."""

import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from megatron_atesd.report.legend import scores_of
from megatron_atesd.report.pictures import GRID_POINTS, INK, MUTED, PALETTE, beta_density, draw_series, new_figure, tidy
from megatron_atesd.report.run_figures import Metrics

SIZE = (4.9, 3.3)  # inches
# Both ends can be told from white and from black.
EARLY_TO_LATE = LinearSegmentedColormap.from_list("early_to_late", ["#56B4E9", "#0072B2", "#8A6FA8", "#D55E00"])
WORSE_TO_BETTER = LinearSegmentedColormap.from_list("worse_to_better", ["#D55E00", "#F2F2F2", "#0072B2"])
RIDGES, STAGES = 14, 5
KL_AT = "distill/kl_at/"


@dataclass(frozen=True)
class Drawing:
    """A figure, and one or two sentences that say how to read it."""

    figure: Figure
    caption: str


def history_figures(metrics: Metrics, name: str = "") -> dict[str, Drawing]:
    """The pictures that one run has the metrics for, by the name that they have in TensorBoard. name: of the run, for titles.

    What belongs to the exposure is drawn for each difficulty bin.
    """
    found = {**_of_exposure(metrics, name)}
    for number in sorted({int(match[1]) for key in metrics if (match := re.match(r"bin(\d+)/", key))}):
        part = {key.removeprefix(f"bin{number}/"): values for key, values in metrics.items() if key.startswith(f"bin{number}/")}
        title = f"{name}, bin {number}" if name else f"bin {number}"
        found |= {f"{key}_bin{number}": drawing for key, drawing in _of_exposure(part | {"update": metrics["update"]}, title).items()}
    if any(key.startswith(KL_AT) for key in metrics):
        found["distill/kl_by_position"] = kl_by_position(metrics, name)
    if "rollout/length_p50" in metrics:
        found["rollout/lengths"] = lengths(metrics, name)
    return found


def _of_exposure(metrics: Metrics, name: str) -> dict[str, Drawing]:
    found = {}
    if "exposure/a" in metrics and "exposure/b" in metrics:
        found["exposure/policy_over_updates"] = policy_ridges(metrics, name)
    if "controller/reward" in metrics and "controller/alpha" in metrics:
        found["exposure/alpha_and_reward"] = alpha_and_reward(metrics, name)
    if scores_of(metrics):
        found["exposure/scores_over_updates"] = scores_map(metrics, name)
    return found


def policy_ridges(metrics: Metrics, name: str = "") -> Drawing:
    """The policy's Beta density at up to RIDGES updates, one above the other, the first one lowest."""
    figure, axes = _begun()
    rows = _spread(np.flatnonzero(np.isfinite(metrics["exposure/a"]) & np.isfinite(metrics["exposure/b"])), RIDGES)
    alpha = np.linspace(0, 1, GRID_POINTS)
    densities = [beta_density(metrics["exposure/a"][row], metrics["exposure/b"][row], alpha) for row in rows]
    highest = max((density.max() for density in densities), default=1.0)
    for place, density in reversed(list(enumerate(densities))):
        colour = EARLY_TO_LATE(place / max(1, len(rows) - 1))
        ridge = place + 2.2 * density / highest
        axes.fill_between(alpha, place, ridge, color=colour, alpha=0.55, linewidth=0, zorder=2 * (len(rows) - place))
        axes.plot(alpha, ridge, color=colour, linewidth=1.2, zorder=2 * (len(rows) - place) + 1)
    tidy(axes, _titled("Exposure policy over updates", name), "reveal ratio α", "update")
    shown = range(0, len(rows), max(1, len(rows) // 6))
    axes.set_yticks(list(shown), [f"{metrics['update'][rows[place]]:.0f}" for place in shown])
    axes.set_xlim(0, 1)
    return Drawing(
        figure,
        "Each ridge is the density that α was drawn from at an update, the first at the bottom. A ridge that narrows has made up its mind; "
        "one that stays as wide as at the start has learned nothing.",
    )


def alpha_and_reward(metrics: Metrics, name: str = "") -> Drawing:
    """A dot for each judged decision: its α and its reward, the colour says when."""
    figure, axes = _begun()
    known = np.isfinite(metrics["controller/reward"]) & np.isfinite(metrics["controller/alpha"])
    alphas, rewards, updates = (metrics[key][known] for key in ("controller/alpha", "controller/reward", "update"))
    dots = axes.scatter(alphas, rewards, c=updates, cmap=EARLY_TO_LATE, s=26, linewidths=0, alpha=0.85)
    means = []
    for low, high in pairwise(np.linspace(0, 1, 6)):
        chosen = (alphas >= low) & (alphas <= high)
        if chosen.sum() > 2:
            means.append(((low + high) / 2, rewards[chosen].mean()))
    if means:
        axes.plot(*zip(*means, strict=True), color=INK, linewidth=1.4, marker="o", markersize=4, label="mean of a fifth of the range")
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    tidy(axes, _titled("α and the reward that it earned", name), "reveal ratio α of the decision", "reward (nats per token)")
    axes.set_xlim(-0.03, 1.03)
    _bar(figure, axes, dots, "update")
    return Drawing(
        figure,
        "Each dot is a decision, judged when its look-ahead had ended. A slope says which exposure pays; a cloud without one says that the "
        "reward tells the controller nothing.",
    )


def scores_map(metrics: Metrics, name: str = "") -> Drawing:
    """A controller's scores by α over updates, each update scaled by its largest score, and the α in force."""
    figure, axes = _begun()
    scores = sorted(scores_of(metrics).items())
    alphas, updates = np.array([alpha for alpha, _ in scores]), metrics["update"]
    grid = np.stack([values for _, values in scores])
    size = np.nanmax(np.abs(np.where(np.isfinite(grid).any(axis=0), grid, 0.0)), axis=0)
    scaled = grid / np.where(size > 0, size, 1.0)
    mesh = axes.pcolormesh(updates, alphas, scaled, cmap=WORSE_TO_BETTER, norm=Normalize(-1, 1), shading="nearest", rasterized=True)
    in_force = metrics.get("exposure/alpha", np.full(len(updates), np.nan))
    axes.step(updates, in_force, where="mid", color="#111111", linewidth=1.6, label="α in force")
    tidy(axes, _titled("Scores of exposures over updates", name), "update", "reveal ratio α")
    axes.grid(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.legend(frameon=True, framealpha=0.85, edgecolor="none", fontsize=9, labelcolor=INK)
    _bar(figure, axes, mesh, "share of the largest score")
    return Drawing(
        figure,
        "Blue: the controller expects that this α helps progress now; orange: that it harms. Each update is scaled by its largest score: "
        "colours compare exposures, not updates.",
    )


def kl_by_position(metrics: Metrics, name: str = "") -> Drawing:
    """Mean KL of the tokens in each position bin, in each fifth of the run."""
    figure, axes = _begun()
    firsts = sorted(int(key.removeprefix(KL_AT)) for key in metrics if key.startswith(KL_AT))
    grid = np.stack([metrics[f"{KL_AT}{first}"] for first in firsts])
    stages = [part for part in np.array_split(np.arange(grid.shape[1]), STAGES) if len(part)]
    for number, part in enumerate(stages):
        colour = EARLY_TO_LATE(number / max(1, len(stages) - 1))
        updates = metrics["update"][part]
        label = f"{updates[0]:.0f} – {updates[-1]:.0f}"
        axes.plot(firsts, _mean(grid[:, part]), color=colour, linewidth=1.8, marker="o", markersize=3.5, label=label)
    tidy(axes, _titled("KL by position in the response", name), "number of the token in its response (4: tokens 4 to 7)", "nats per token")
    axes.set_xscale("log", base=2)
    axes.set_xticks(firsts, [str(first) for first in firsts])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    legend = axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, title="updates", title_fontsize=8.5)
    legend.get_title().set_color(MUTED)
    return Drawing(
        figure,
        "Where in the response teacher and student differ, from early updates (blue) to late ones (orange). A line that falls has been "
        "learned; one that rises far to the right says that long responses go astray.",
    )


def lengths(metrics: Metrics, name: str = "") -> Drawing:
    """Median length with the band between the shortest and the longest tenth, and the share of responses cut at the limit."""
    figure = new_figure(*SIZE)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2.4, 1))
    updates = metrics["update"]
    above.fill_between(
        updates, metrics["rollout/length_p10"], metrics["rollout/length_p90"], color=PALETTE[0], alpha=0.18, linewidth=0, label="10 – 90 %"
    )
    draw_series(above, updates, metrics["rollout/length_p50"], PALETTE[0], "median")
    tidy(above, _titled("Lengths of responses", name), "", "tokens")
    above.set_ylim(bottom=0)
    above.legend(frameon=False, fontsize=9, labelcolor=INK, ncols=2)
    draw_series(below, updates, metrics.get("rollout/truncated", np.full(len(updates), np.nan)), PALETTE[1], "cut at the limit")
    tidy(below, "", "update", "share cut")
    below.set_ylim(-0.03, 1.03)
    return Drawing(
        figure,
        "Above: the band holds eight of ten responses. Below: the share that was cut at rollout.max_new_tokens. A band that climbs to the "
        "limit together with that share is the sign of responses that no longer end.",
    )


def _begun() -> tuple[Figure, Axes]:
    figure = new_figure(*SIZE)
    return figure, figure.subplots()


def _titled(title: str, name: str) -> str:
    return f"{title}: {name}" if name else title


def _bar(figure: Figure, axes: Axes, shown: object, label: str) -> Colorbar:
    bar = figure.colorbar(shown, ax=axes, pad=0.02, aspect=28)  # pyright: ignore[reportArgumentType]
    bar.set_label(label, fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, colors=MUTED, length=0)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return bar


def _spread(rows: NDArray[np.int64], count: int) -> list[int]:
    """At most `count` of them, from the first to the last."""
    return (
        [int(rows[place]) for place in np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))]
        if len(rows)
        else []
    )


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each row, over what is known; NaN for a row of which nothing is."""
    known = np.isfinite(values)
    return np.where(known.any(axis=1), np.where(known, values, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1), np.nan)
