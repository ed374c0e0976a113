"""A plan as tables for a person, and as plain values for a program."""

from dataclasses import asdict, fields
from typing import Any

from rich.table import Table

from megatron_atesd.plan.hardware import Assumptions, Gpu
from megatron_atesd.plan.memory import stage_adapters, stage_parameters, trained_parameters
from megatron_atesd.plan.planned_update import PlannedUpdate
from megatron_atesd.plan.search import MARGIN, Plan, remedies, ways_out
from megatron_atesd.plan.speed import sorting_seconds

GIB = 2**30


def layout_text(work: PlannedUpdate) -> str:
    """The layout in a line."""
    virtual = f" (VP {work.virtual})" if work.virtual > 1 else ""
    context = f" × CP {work.context}" if work.context > 1 else ""
    layout = f"TP {work.tensor} × PP {work.pipeline}{virtual}{context} × DP {work.data} = {work.gpus} GPUs"
    return f"{layout}, micro_batch_tokens {work.micro_batch_tokens}"


def memory_table(plan: Plan, gpu: Gpu) -> Table:
    """GiB of each kind of rank: one column a stage."""
    table = Table("GiB on one GPU", *(f"stage {rank.stage}" for rank in plan.memory))
    held = [stage_parameters(plan.work, rank.stage) + stage_adapters(plan.work) for rank in plan.memory]
    trained = [trained_parameters(plan.work, rank.stage) for rank in plan.memory]
    table.add_row("parameters held (millions)", *(f"{number / 1e6:,.0f}" for number in held))
    table.add_row("trained parameters (millions)", *(f"{number / 1e6:,.0f}" for number in trained))
    for name in plan.memory[0].always:
        table.add_row(name, *(gib(rank.always[name]) for rank in plan.memory))
    for phase in plan.memory[0].phases:
        names = dict.fromkeys(name for rank in plan.memory for name in rank.phases[phase])
        for name in names:
            table.add_row(f"{phase}: {name}", *(gib(rank.phases[phase].get(name, 0)) for rank in plan.memory))
    table.add_section()
    table.add_row(f"peak, of {gpu.memory / GIB:.1f}", *(f"{gib(rank.peak)} in {rank.fullest}" for rank in plan.memory))
    return table


def gib(value: float) -> str:
    return f"{value / GIB:.2f}"


def fit_text(plan: Plan, gpu: Gpu, gpu_name: str, assume: Assumptions) -> str:
    """'' where the plan fits, else what alone would make it fit."""
    if plan.peak <= gpu.memory:
        return ""
    return f"Does not fit a {gpu_name}. Alone enough: {'; '.join(remedies(plan.work, gpu, assume)) or 'no single setting, see below'}.\n"


def suggestion_text(plan: Plan, best: Plan | None, gpu: Gpu, assume: Assumptions) -> str:
    """The layout to take; the planned one where it fits and no other is clearly faster; where nothing fits, what else would do."""
    if best is None:
        ways = [f"{name}: {result_text(found)}" for name, found in ways_out(plan.work, gpu, assume)]
        return (
            "No layout of this model fits these GPUs with these settings. Enough: " + (". Or ".join(ways) or "nothing that was tried") + "."
        )
    if plan.peak <= gpu.memory and plan.seconds <= best.seconds * (1 + MARGIN):
        return f"Suggested: this layout; none that fits is clearly faster. Most room: {result_text(best)}."
    return f"Suggested: {result_text(best)}."


def result_text(plan: Plan) -> str:
    """A layout with its time and memory in a line."""
    return f"{layout_text(plan.work)}: {plan.seconds:.2f} s an update, {plan.peak / GIB:.1f} GiB"


def time_table(plan: Plan) -> Table:
    """Seconds of an update by phase, with what they are made of."""
    table = Table("phase", "seconds", "share", "TFLOP", "GB read or written", "GB sent", "bound by")
    for phase in plan.phases:
        amounts = (phase.flops / 1e12, phase.memory / 1e9, phase.sent / 1e9)
        table.add_row(
            phase.name, f"{phase.seconds:.3f}", f"{phase.seconds / plan.seconds:.0%}", *(f"{a:,.1f}" for a in amounts), phase.bound
        )
    table.add_section()
    table.add_row("update", f"{plan.seconds:.2f}", "", "", "", "", f"{plan.tokens_per_second:,.0f} response tokens/s")
    return table


def sorting_text(plan: Plan, gpu: Gpu, assume: Assumptions) -> str:
    """What difficulty bins cost once, in updates; '' without any that are measured."""
    work = plan.work
    if not (work.references or work.answers):
        return ""
    what = f"reads {work.references:,} references" if work.references else f"gives {work.answers:,} responses"
    seconds = sorting_seconds(work, gpu, assume)
    return (
        f"Once, before the first update: the start model {what} to sort problems by difficulty, {seconds:,.0f} s, as long as "
        f"{seconds / plan.seconds:,.1f} updates.\n"
    )


def assumption_lines(plan: Plan, gpu: Gpu, assume: Assumptions) -> list[str]:
    """Everything that the numbers take for granted."""
    lengths = plan.work.lengths
    sheet = ", ".join(f"{field.name} {getattr(gpu, field.name):.3g}" for field in fields(gpu) if field.name != "fp8")
    taken = ", ".join(f"{field.name} {getattr(assume, field.name):.3g}" for field in fields(assume))
    slower = ["Products are timed as bf16; those of model.dtype fp32 take several times as long."] if plan.work.size == 4 else []
    fp8 = ["In FP8: activations count as in bf16, though they take less; head and loss are in bf16."] if plan.work.fp8 else []
    return [
        *slower,
        *fp8,
        f"Lengths: student prompt {lengths.student}, teacher prompt {lengths.teacher}, response {lengths.response} tokens, all alike.",
        f"Data sheet (bytes, operations, per second; see plan/hardware.py): {sheet}.",
        f"Assumed, not measured: {taken}.",
    ]


def plan_values(plan: Plan) -> dict[str, Any]:
    """The plan in JSON's types; bytes and seconds."""
    found: dict[str, Any] = asdict(plan) | {"peak": plan.peak, "seconds": plan.seconds, "tokens_per_second": plan.tokens_per_second}
    for values, rank in zip(found["memory"], plan.memory, strict=True):
        values["peak"] = rank.peak
    return found
