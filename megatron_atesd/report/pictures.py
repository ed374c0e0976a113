"""The parts of every picture: palette, axes without junk, curves over updates, Beta densities. Needs matplotlib (the `plots` extra).

Figures are made without pyplot, so nothing here has global state or needs a display.
"""

from collections.abc import Mapping, Sequence
from math import lgamma
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from megatron_atesd.errors import DataError

# Okabe and Ito's colours that every kind of colour vision tells apart, without the yellow that vanishes on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
INK, MUTED, GRID = "#222222", "#6B6B6B", "#E6E6E6"
GRID_POINTS = 401


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure of the given size in inches, whose layout keeps labels apart."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    return Figure(figsize=(width, height), dpi=150, facecolor="white", layout=layout)


def save(figure: Figure, path: Path) -> None:
    """Write the figure, in the format of the name's suffix; missing folders are made. Raises DataError when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except OSError as error:
        raise DataError(f"cannot write the picture {path} ({error.strerror}): choose another --out") from None


def tidy(axes: Axes, title: str, xlabel: str = "", ylabel: str = "") -> None:
    """Left-aligned title, light horizontal grid, two spines, readable sizes."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=10)
    axes.set_xlabel(xlabel, fontsize=10, color=INK)
    axes.set_ylabel(ylabel, fontsize=10, color=INK)
    axes.tick_params(labelsize=9, colors=MUTED, length=0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#BBBBBB")


def beta_density(a: float, b: float, alpha: NDArray[np.float64]) -> NDArray[np.float64]:
    """Density of Beta(a, b) at each α in [0, 1]; a, b ≥ 1, so it is finite everywhere."""
    peak = lgamma(a + b) - lgamma(a) - lgamma(b)
    return np.exp(peak) * alpha ** (a - 1) * (1 - alpha) ** (b - 1)


def draw_beta(axes: Axes, a: float, b: float, colour: str, label: str, dashed: bool = False) -> None:
    """One Beta density as a curve over α, filled lightly unless dashed."""
    alpha = np.linspace(0.0, 1.0, GRID_POINTS)
    density = beta_density(a, b, alpha)
    axes.plot(alpha, density, color=colour, linewidth=2, linestyle="--" if dashed else "-", label=label)
    if not dashed:
        axes.fill_between(alpha, density, color=colour, alpha=0.12, linewidth=0)


def tidy_beta(axes: Axes, title: str) -> None:
    """Axes of a density over the reveal ratio."""
    tidy(axes, title, "reveal ratio α", "density")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.3 * max(1.0, axes.dataLim.y1))  # head room for the legend
    axes.legend(frameon=False, fontsize=9, loc="upper left", ncols=2, labelcolor=INK)


def beta_figure(update: int, a: float, b: float, alphas: Sequence[float]) -> Figure:
    """The policy's density at one update, with a tick for each α used so far (later ones darker)."""
    figure = new_figure(5.6, 3.4)
    axes = figure.subplots()
    draw_beta(axes, a, b, PALETTE[0], f"Beta({a:.2f}, {b:.2f})")
    if alphas:
        shades = [to_rgba(PALETTE[1], shade) for shade in np.linspace(0.15, 0.9, len(alphas))]
        floor = axes.get_xaxis_transform()  # α in data units, height as a share of the axes
        axes.scatter(alphas, np.full(len(alphas), 0.035), marker="|", s=140, color=shades, transform=floor, clip_on=False)
        axes.plot([], [], marker="|", markersize=12, linestyle="", color=PALETTE[1], label="α used")
    tidy_beta(axes, f"Exposure policy after update {update}")
    return figure


def scores_figure(update: int, scores: Mapping[float, float], alpha: float, sd: float | None = None) -> Figure:
    """A controller's scores by α at one update, with a band of one `sd` if given, and the α used."""
    figure = new_figure(5.6, 3.4)
    axes = figure.subplots()
    known = sorted((place, score) for place, score in scores.items() if np.isfinite(score))
    if known:
        place, score = np.array(known).T
        axes.plot(place, score, color=PALETTE[0], linewidth=2, marker="o", label="score")
        if sd is not None:
            axes.fill_between(place, score - sd, score + sd, color=PALETTE[0], alpha=0.12, linewidth=0, label="± 1 SD")
    axes.axvline(alpha, color=PALETTE[1], linewidth=2, linestyle="--", label=f"α used: {alpha:.2f}")
    tidy(axes, f"Exposure scores after update {update}", "reveal ratio α", "score (higher: better for progress)")
    axes.set_xlim(-0.03, 1.03)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def trailing_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Mean of each value and the up to window - 1 before it, same length; NaN is left out (all NaN gives NaN)."""
    known = ~np.isnan(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - window)
    number = counts[end] - counts[start]
    return np.where(number > 0, (sums[end] - sums[start]) / np.maximum(number, 1), np.nan)


def draw_series(axes: Axes, updates: NDArray[np.float64], values: NDArray[np.float64], colour: str, label: str, window: int = 1) -> None:
    """One metric over updates; window > 1 draws the trailing mean strongly over the pale values, for noisy metrics.

    NaN where an update did not measure it: the line goes from one measurement to the next.
    """
    known = np.isfinite(values)
    updates, values = updates[known], values[known]
    if window > 1:
        axes.plot(updates, values, color=colour, linewidth=0.7, alpha=0.25)
        values = trailing_mean(values, window)
    axes.plot(updates, values, color=colour, linewidth=1.8, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
