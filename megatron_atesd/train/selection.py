"""Which checkpoint a run ends with, by the rule that eval.select declared before it began, and how that is told. Pure.

    last  the last one
    best  of those evaluated, the one with the highest Average@K on one named file; the earlier one of equals

The highest of several noisy figures is too high by itself, so what is told of `best` always says of how many it was the highest.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from megatron_atesd.config import EvalConfig

Figures = Mapping[str, Any]  # one file's evaluation.json
Results = Mapping[int, Mapping[str, Figures]]  # number of updates → name of the file → figures


@dataclass(frozen=True)
class Best:
    """The choice so far, as best.json has it.

    candidates: evaluations compared. without_checkpoint: steps that scored higher, but of which there is no checkpoint any more.
    """

    step: int
    rule: str
    file: str
    score: float
    ci95: tuple[float, float]
    candidates: int
    without_checkpoint: tuple[int, ...] = ()


def choose_best(results: Results, checkpoints: Collection[int], settings: EvalConfig) -> Best | None:
    """The best of `results` by the rule, None while there is no candidate. checkpoints: the steps of those that are there.

    The start model (step 0) is no candidate: it is no checkpoint of the run.
    """
    name = settings.select_on
    of_file = {step: files[name] for step, files in sorted(results.items()) if step > 0 and name in files}
    scores = {step: figures["average_at_k"] for step, figures in of_file.items()}
    kept = [step for step in scores if step in checkpoints]
    if not kept:
        return None
    best = max(kept, key=scores.__getitem__)  # the first of equals
    missed = tuple(step for step in scores if scores[step] > scores[best])
    low, high = of_file[best]["ci95"]
    return Best(best, rule(settings), name, scores[best], (low, high), len(scores), missed)


def rule(settings: EvalConfig) -> str:
    """The declared rule in words."""
    if settings.select == "last":
        return "the last checkpoint"
    return f"the checkpoint with the highest Average@{settings.samples} on {settings.select_on}, the earlier one of equals"


def evaluation_line(step: int, files: Mapping[str, Figures]) -> str:
    """The figures of one evaluation for the console."""
    when = f"evaluation after update {step}" if step else "evaluation before the first update"
    return f"{when}: " + ", ".join(f"{name} {shown(figures)}" for name, figures in files.items())


def shown(figures: Figures) -> str:
    """Average@K in percent, with its interval."""
    low, high = (max(0.0, end) for end in figures["ci95"])  # rounding may leave -0.0
    return f"{100 * figures['average_at_k']:.1f} % ({100 * low:.1f} – {100 * high:.1f})"


def final_lines(results: Results, last: int, best: Best | None, settings: EvalConfig) -> Iterator[str]:
    """What is said at the end of the training. best: None with select last, of which nothing but the last step is told."""
    start, end = results.get(0, {}), results.get(last, {})
    yield f"Average@{settings.samples} with its 95 % interval, after update {last}:"
    for name, figures in end.items():
        before = f", before training {shown(start[name])}" if name in start else ""
        yield f"  {name} {shown(figures)}{before}"
    if settings.select == "last":
        yield f"result by eval.select last: step_{last}"
    elif best is None:
        yield f"no result by eval.select best: no evaluated checkpoint is there; step_{last} is the last one"
    else:
        yield from _best_lines(results, last, best)


def _best_lines(results: Results, last: int, best: Best) -> Iterator[str]:
    yield f"result by eval.select best: step_{best.step}, {best.rule}; {best.candidates} were evaluated"
    for name, figures in results[best.step].items():
        ends = {best.step: figures} | ({last: results[last][name]} if name in results.get(last, {}) else {})
        bias = f" (selected on this file: biased upward, as the highest of {best.candidates})" if name == best.file else ""
        yield f"  {name}: " + ", ".join(f"step_{step} {shown(of_step)}" for step, of_step in ends.items()) + bias
    if len(results[best.step]) == 1:
        yield f"  no other file was evaluated: nothing is known of step_{best.step} without that bias"
    if best.without_checkpoint:
        yield "  scored higher, but have no checkpoint: " + ", ".join(f"step_{step}" for step in best.without_checkpoint)
    if (start := results.get(0, {}).get(best.file)) and start["average_at_k"] >= best.score:
        yield f"  no checkpoint is above the start model on {best.file}, {shown(start)}"


def summary(results: Results, last: int, best: Best | None, settings: EvalConfig) -> dict[str, Any]:
    """The part `eval` of summary.json: all curves, the rule, and with `best` both ends of the comparison side by side."""
    steps = sorted(results)
    names = dict.fromkeys(name for step in steps for name in results[step])
    curves = {name: {str(step): _brief(results[step][name]) for step in steps if name in results[step]} for name in names}
    found: dict[str, Any] = {"samples": settings.samples, "select": settings.select, "rule": rule(settings), "curves": curves}
    found |= {"last_step": last, "at_last": _briefs(results.get(last, {}))}
    if best is None:
        return found
    return found | {"best": asdict(best) | {"biased_upward": best.candidates > 1}, "at_best": _briefs(results[best.step])}


def _briefs(files: Mapping[str, Figures]) -> dict[str, Any]:
    return {name: _brief(figures) for name, figures in files.items()}


def _brief(figures: Figures) -> dict[str, Any]:
    return {name: figures[name] for name in ("average_at_k", "ci95")}
