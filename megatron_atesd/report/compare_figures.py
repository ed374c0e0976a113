"""Curves over updates of one or several runs, one colour a run, each with a sentence on how to read it. Needs matplotlib."""

from collections.abc import Mapping

import numpy as np

from megatron_atesd.report.history_figures import SIZE, Drawing
from megatron_atesd.report.legend import describe
from megatron_atesd.report.pictures import INK, draw_series, new_figure, tidy
from megatron_atesd.report.run_figures import Metrics, colours

# metric → title, whether it is noisy from update to update, how to read it
CURVES = {
    "rollout/accuracy": (
        "Accuracy of the responses",
        True,
        "Share of the update's responses whose boxed answer is the reference's, letter by letter. These are training problems: what counts "
        "is an evaluation.",
    ),
    "probe/nll": (
        "Probe NLL of the reference solutions",
        False,
        "How surprising held-out reference solutions are to the student. It may fall while accuracy falls, where references are written "
        "otherwise than the student can follow.",
    ),
    "distill/kl": (
        "Teacher–student KL",
        True,
        "How far the student is from the exposed teacher, without the clip. It moves with the exposure as well as with learning.",
    ),
    "exposure/alpha": ("Reveal ratio", True, "The share of the reference that the teacher sees."),
    "student/entropy": (
        "Entropy of the student",
        True,
        "How undecided the student is about the next token. A fall towards 0 means that its responses no longer vary.",
    ),
    "optim/grad_norm": ("Norm of the gradient", True, "Before clipping. A jump is an unusual batch, a climb is a run that comes apart."),
}
_SMOOTHED_SHARE, _EVALUATIONS, _SCORE = 10, 4, "/average_at_k"


def compare_figures(runs: Mapping[str, Metrics]) -> dict[str, Drawing]:
    """A picture for each curve that a run has, by metric; those of an evaluation during training first."""
    names = sorted({name for run in runs.values() for name in run})
    during = [name for name in names if name.startswith("eval/") and name.endswith(_SCORE)]
    chosen = [*during[:_EVALUATIONS], *(name for name in CURVES if name in names)]
    return {name: curve(runs, name) for name in chosen}


def curve(runs: Mapping[str, Metrics], name: str) -> Drawing:
    """One metric over updates, of each run that has it."""
    entry = describe(name)
    title, noisy, caption = CURVES.get(name, (name, False, entry.meaning if entry else ""))
    ends = [name.removesuffix(_SCORE) + end for end in ("/ci_low", "/ci_high")] if name.endswith(_SCORE) else []
    if ends:
        title = f"Average@K on {name.removeprefix('eval/').removesuffix(_SCORE)}"
        caption += " The band is its 95 % interval over problems. The evaluation before the first update is in the table above."
    figure = new_figure(*SIZE)
    axes = figure.subplots()
    shown = {run: metrics for run, metrics in runs.items() if name in metrics}
    windows = {run: max(1, len(metrics["update"]) // _SMOOTHED_SHARE) if noisy else 1 for run, metrics in shown.items()}
    for run, metrics in shown.items():
        draw_series(axes, metrics["update"], metrics[name], colours(runs)[run], run, windows[run])
        if ends and all(end in metrics for end in ends):
            there = ~np.isnan(metrics[name])
            low, high = (metrics[end][there] for end in ends)
            axes.fill_between(metrics["update"][there], low, high, color=colours(runs)[run], alpha=0.15, linewidth=0)
    tidy(axes, title, "update", entry.unit if entry else "")
    if name == "exposure/alpha":
        axes.set_ylim(-0.04, 1.04)
    if len(runs) > 1:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    smoothed = " Pale: each update; strong: the mean over a tenth of the run." if max(windows.values(), default=1) > 1 else ""
    return Drawing(figure, caption + smoothed)
