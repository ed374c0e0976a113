"""What was measured of whole updates as figures beside their targets, and as a table."""

import statistics
from collections.abc import Sequence
from typing import Any

from rich.table import Column, Table

from benchmarks.flops import step_flops
from benchmarks.tables import MISSING
from benchmarks.update import Measured, Updates

PHASES = ("rollout", "teacher", "student", "loss", "optimizer")
TRAINING = ("teacher", "student", "loss")
# On one H100 or H200, Qwen3-1.7B in bf16.
TARGETS = {"mfu": (0.40, None), "loss_over_products": (None, 1.3), "peak_over_plan": (0.9, 1.1)}

Figures = dict[str, Any]


def figures(updates: Updates, measured: Measured, sheet_flops: float | None, matmul_flops: float) -> Figures:
    """Medians over the updates, of the last rank, whose pipeline stage has the loss; of memory the fullest rank's.

    tokens_per_second: all GPUs together: generated (rollout, loss, update), or all that a pass reads (teacher, student).
    mfu: FLOPs of both passes and the loss (benchmark/flops.py) over sheet_flops, a GPU's on the data sheet, or None; share_of_matmul: over
    matmul_flops, the best that a large product was seen to reach. Neither counts what recomputation does again.
    """
    steps, work = measured.ranks[-1]["steps"], updates.workload
    seconds = {phase: statistics.median(step[phase] for step in steps) for phase in PHASES}
    training = statistics.median(sum(step[phase] for phase in TRAINING) for step in steps)
    update = statistics.median(sum(step[phase] for phase in PHASES) for step in steps)
    seconds |= {"training": training, "update": update}
    replicas = updates.world // updates.model_ranks
    read = {"teacher": work.teacher_length, "student": work.prompt_tokens + work.response_tokens}
    tokens = {phase: replicas * work.prompts * read.get(phase, work.response_tokens) for phase in seconds if phase != "optimizer"}
    rate = step_flops(work, updates.config.lora.rank, updates.config.lora.targets) / updates.model_ranks / training
    fullest = max(measured.ranks, key=lambda rank: rank["over_start_gib"])
    return {
        "name": updates.name,
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": {phase: count / seconds[phase] for phase, count in tokens.items()},
        "flops_per_second": rate,
        "mfu": rate / sheet_flops if sheet_flops else None,
        "share_of_matmul": rate / matmul_flops,
        "loss_part_seconds": measured.loss_part,
        "loss_over_products": measured.loss_part["loss"] / measured.loss_part["products"],
        "peak_gib": fullest["over_start_gib"],
        "planned_gib": fullest["planned_gib"],
        "peak_over_plan": fullest["over_start_gib"] / fullest["planned_gib"],
        "loss": measured.ranks[-1]["loss"],
    }


def verdict(name: str, value: float | None, judged: bool) -> str:
    """`met` or `missed`; `not judged` where the target does not apply or nothing was measured."""
    if value is None or not judged:
        return "not judged"
    low, high = TARGETS[name]
    return "met" if (low is None or value >= low) and (high is None or value <= high) else "missed"


def figures_table(rows: Sequence[Figures], judged: bool) -> Table:
    """One column a variant; ratios (÷) to the first."""
    table = Table("median of an update", "target", *(Column(row["name"], overflow="fold") for row in rows))
    for phase in rows[0]["seconds"]:
        table.add_row(f"{phase}, seconds", "", *(f"{row['seconds'][phase]:.4g}" for row in rows))
    table.add_row("training ÷ first", "", *(f"{row['seconds']['training'] / rows[0]['seconds']['training']:.2f}" for row in rows))
    table.add_section()
    for phase in rows[0]["tokens"]:
        table.add_row(f"{phase}, tokens/s", "", *(f"{row['tokens_per_second'][phase]:,.0f}" for row in rows))
    table.add_section()
    table.add_row("training, TFLOP/s of a rank", "", *(f"{row['flops_per_second'] / 1e12:.4g}" for row in rows))
    table.add_row("training, share of matmul speed", "", *(f"{row['share_of_matmul']:.1%}" for row in rows))
    for name, label, form in (
        ("mfu", "training, MFU", "{:.1%}"),
        ("loss_over_products", "loss part ÷ its products", "{:.2f}"),
        ("peak_over_plan", "peak memory ÷ plan", "{:.2f}"),
    ):
        cells = [MISSING if row[name] is None else f"{form.format(row[name])} {verdict(name, row[name], judged)}" for row in rows]
        table.add_row(label, _bounds(name, form), *cells)
    for name, label in (("peak_gib", "peak memory, GiB"), ("planned_gib", "planned, GiB"), ("loss", "first loss, nats")):
        table.add_row(label, "", *(f"{row[name]:.4g}" for row in rows))
    return table


def _bounds(name: str, form: str) -> str:
    low, high = (None if bound is None else form.format(bound) for bound in TARGETS[name])
    return f"{low} – {high}" if low and high else f"≥ {low}" if low else f"≤ {high}"
