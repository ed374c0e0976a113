"""What a curve of the mismatch costs against its exposures one by one, in the same run."""

import time
from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import Any

import torch
import torch.distributed as dist

from megatron_atesd.distill.mismatch import mismatch_sums
from megatron_atesd.distill.step import Example, measure_step, teacher_pass
from megatron_atesd.parallel.groups import data_parallel_place
from megatron_atesd.train.mismatch import Mismatch


def curve_cost(measured: Mismatch, repeats: int) -> dict[str, Any]:
    """Seconds of rank 0, medians of `repeats` rounds, JSON-ready. Collective.

    curve: all exposures together. exposure: one alone, as a training measures it: teacher's pass, student's pass and divergence.
    teacher_pass: its teacher's pass alone, without logits. The last two are means over the exposures.
    """
    model, teacher, divergence, tokens = measured.model, measured.teacher, measured.divergence, measured.tokens
    rank, size = data_parallel_place()
    each = [_examples(measured, i)[rank::size] for i in range(len(measured.task.alphas))]
    rounds = [
        {
            "curve": _seconds(lambda: mismatch_sums(model, teacher, measured.pairs, measured.prompts, divergence, tokens)),
            "exposure": fmean(_seconds(lambda of=of: measure_step(model, teacher, of, divergence, tokens)) for of in each),
            "teacher_pass": fmean(_seconds(lambda of=of: teacher_pass(model, teacher, of, tokens)) for of in each),
        }
        for _ in range(repeats + 1)
    ][1:]  # the first warms up
    cost: dict[str, Any] = {f"{name}_seconds": median(r[name] for r in rounds) for name in rounds[0]}
    ratios = {f"curve_by_{name}": median(r["curve"] / r[name] for r in rounds) for name in ("exposure", "teacher_pass")}
    return {"exposures": len(each), "repeats": repeats} | cost | ratios


def cost_lines(cost: dict[str, Any]) -> list[str]:
    """For a person."""
    return [
        f"the curve of {cost['exposures']} exposures: {cost['curve_seconds']:.3f} s, median of {cost['repeats']}",
        f"  {cost['curve_by_exposure']:.2f} × one exposure alone (teacher, student and divergence: {cost['exposure_seconds']:.3f} s)",
        f"  {cost['curve_by_teacher_pass']:.2f} × one teacher pass alone ({cost['teacher_pass_seconds']:.3f} s)",
    ]


def _examples(measured: Mismatch, exposure: int) -> Sequence[Example]:
    return [Example(student, p[exposure], response) for (student, response), p in zip(measured.pairs, measured.prompts, strict=True)]


def _seconds(work: Callable[[], object]) -> float:
    dist.barrier()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started
