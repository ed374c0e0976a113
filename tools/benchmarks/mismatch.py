"""What a curve of the mismatch costs against its exposures one by one, in the same run."""

import time
from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import Any

import torch
import torch.distributed as dist

from megatron_atesd.distill.mismatch import mismatch_sums
from megatron_atesd.distill.readings import Example, teacher_passes
from megatron_atesd.distill.step import measure_step
from megatron_atesd.distill.target import TEACHER
from megatron_atesd.parallel.groups import data_parallel_place
from megatron_atesd.train.mismatch import Mismatch


def curve_cost(measured: Mismatch, repeats: int) -> dict[str, Any]:
    """Seconds of rank 0, medians of `repeats` rounds, and the tokens that pass through the model, JSON-ready. Collective.

    curve: all exposures together. exposure: one alone, as a training measures it: teacher's pass, student's pass and divergence.
    teacher_pass: its teacher's pass alone, without logits. The last two are means over the exposures. least: tokens of a curve that would
    compute what the teacher's prompts of a problem begin with in common only once, as this one does not.
    """
    model, teacher, divergence, tokens = measured.model, measured.teacher, measured.divergence, measured.tokens
    rank, size = data_parallel_place()
    each = [_examples(measured, i)[rank::size] for i in range(len(measured.task.alphas))]
    rounds = [
        {
            "curve": _seconds(lambda: mismatch_sums(model, teacher, measured.pairs, measured.prompts, divergence, tokens)),
            "exposure": fmean(_seconds(lambda of=of: measure_step(model, teacher, of, divergence, tokens)) for of in each),
            "teacher_pass": fmean(_seconds(lambda of=of: teacher_passes(model, teacher, [of], tokens, TEACHER)) for of in each),
        }
        for _ in range(repeats + 1)
    ][1:]  # the first warms up
    return {
        "exposures": len(each),
        "repeats": repeats,
        "seconds": {name: median(of[name] for of in rounds) for name in rounds[0]},
        "curve_by": {name: median(of["curve"] / of[name] for of in rounds) for name in ("exposure", "teacher_pass")},
        "tokens": _tokens(measured),
    }


def _tokens(measured: Mismatch) -> dict[str, float]:
    """Without padding."""
    student, every, different, least = 0, 0, 0, 0
    for (prompt, response), seen in zip(measured.pairs, measured.prompts, strict=True):
        student += len(prompt) + len(response)
        every += sum(len(ids) + len(response) for ids in seen)
        different += sum(len(ids) + len(response) for ids in {*map(tuple, seen)})
        least += len({tuple(ids[:end]) for ids in seen for end in range(1, len(ids) + 1)}) + len({*map(tuple, seen)}) * len(response)
    one = every / len(measured.task.alphas)
    return {"curve": student + different, "exposure": student + one, "teacher_pass": one, "least": student + least}


def cost_lines(cost: dict[str, Any] | None) -> list[str]:
    """For a person; nothing where nothing was timed."""
    if cost is None:
        return []
    tokens, seconds = cost["tokens"], cost["seconds"]
    lines = [f"the curve of {cost['exposures']} exposures: {seconds['curve']:.3f} s, median of {cost['repeats']}"]
    for name, what in (
        ("exposure", "exposure alone (teacher, student and divergence)"),
        ("teacher_pass", "teacher pass alone (no logits)"),
    ):
        bounds = f"in tokens {tokens['curve'] / tokens[name]:.2f}, with shared beginnings {tokens['least'] / tokens[name]:.2f}"
        lines.append(f"  {cost['curve_by'][name]:.2f} × one {what}, {seconds[name]:.3f} s; {bounds}")
    return lines


def _examples(measured: Mismatch, exposure: int) -> Sequence[Example]:
    return [Example(student, p[exposure], response) for (student, response), p in zip(measured.pairs, measured.prompts, strict=True)]


def _seconds(work: Callable[[], object]) -> float:
    dist.barrier()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started
