"""The benchmark's rows as tables for a person."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich import box
from rich.table import Table

Row = Mapping[str, Any]
MISSING = "–"
WIDTH, ROLLOUT_WIDTH = 120, 130  # columns that the widest table of a step needs, and that of rollouts


def step_tables(rows: Sequence[Row], baselines: Sequence[str]) -> list[Table]:
    """For each workload and dtype: the time of a step, then its memory with what shows that all contenders did the same work."""
    return [
        table for title, part in _groups(rows) for table in (_time_table(title, part, baselines), _memory_table(title, part, baselines))
    ]


def loss_tables(rows: Sequence[Row], lora: bool = False) -> list[Table]:
    """For each workload and dtype: time and memory of the loss alone, by tokens."""
    return [_loss_table(title, part, lora) for title, part in _groups(rows)]


def rollout_tables(rows: Sequence[Row]) -> list[Table]:
    """For each workload: speed, places and memory of every engine, by batch and lengths."""
    return [_rollout_table(workload, list(part)) for workload, part in groupby(rows, lambda row: row["workload"])]


def _groups(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    return [(f"{workload}, {dtype}", list(part)) for (workload, dtype), part in groupby(rows, lambda row: (row["workload"], row["dtype"]))]


def _time_table(title: str, rows: Sequence[Row], baselines: Sequence[str]) -> Table:
    headings = (
        "teacher",
        "student",
        "loss",
        "training",
        *(f"÷ {name}" for name in baselines),
        "tokens/s",
        "of peak",
        "optimizer",
        "generation",
    )
    table = _table(f"{title}: seconds of one step (medians)", ("contender",), headings)
    for row in rows:
        seconds = row["seconds"]
        table.add_row(
            row["contender"],
            *(_number(seconds[name]) for name in ("teacher", "student", "loss")),
            *(_number(row["training_seconds"]), *(_ratio(row, f"seconds_{name}") for name in baselines)),
            *(f"{row['tokens_per_second']:.0f}", f"{row['share_of_peak']:.0%}"),
            *(_number(seconds["optimizer"]), _number(seconds.get("generation"))),
        )
    return table


def _memory_table(title: str, rows: Sequence[Row], baselines: Sequence[str]) -> Table:
    headings = ("GiB over start", *(f"÷ {name}" for name in baselines), "peak GiB", "first loss, nats", "gradient norm")
    table = _table(f"{title}: memory, and the first step's result", ("contender",), headings)
    for row in rows:
        ratios = (_ratio(row, f"memory_{name}") for name in baselines)
        memory = (f"{row['over_start_gib']:.2f}", *ratios, f"{row['peak_gib']:.2f}")
        table.add_row(row["contender"], *memory, f"{row['loss']:.5f}", f"{row['grad_norm']:.4f}")
    return table


def _loss_table(title: str, rows: Sequence[Row], lora: bool) -> Table:
    """`less hidden`, the memory beside that of the hidden states' gradient, should not grow once the tokens fill a chunk."""
    headings = (
        "tokens",
        "seconds",
        "÷ fused" if lora else "÷ products",
        "of peak",
        "GiB over inputs",
        "÷ fused" if lora else "÷ dense",
        "less hidden",
    )
    table = _table(f"{title}: the loss part alone (medians)", ("method",), headings)
    for row in rows:
        memory = [MISSING] * 3
        if not row["method"].startswith("products"):
            memory = [f"{row['over_start_gib']:.3f}", _ratio(row, "memory"), f"{row['over_start_gib'] - row['hidden_gib']:.3f}"]
        table.add_row(
            *(row["method"], str(row["tokens"]), _number(row["seconds"]), _ratio(row, "seconds"), f"{row['share_of_peak']:.0%}", *memory)
        )
    return table


def _rollout_table(workload: str, rows: Sequence[Row]) -> Table:
    headings = ("TP", "prompts", "tokens", "seconds", "tokens/s", "÷ transformers", "processor s", "÷ transformers", "slot use", "GiB")
    table = _table(f"{workload}: rollouts (medians)", ("batch", "lengths", "engine"), headings)
    for case, part in groupby(rows, lambda row: (str(row["batch"]), row["lengths"])):
        table.add_section()
        for row in part:
            numbers = (str(row["tensor"]), str(row["tokens"]), _number(row["seconds"]), f"{row['tokens_per_second']:.0f}")
            used = MISSING if row["slot_use"] is None else f"{row['slot_use']:.0%}"
            processor = (_number(row["processor_seconds"]), _ratio(row, "processor_seconds"))
            table.add_row(*case, row["engine"], *numbers, _ratio(row, "tokens_per_second"), *processor, used, f"{row['peak_gib']:.3f}")
    return table


def _table(title: str, names: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _number(seconds: float | None) -> str:
    """Three significant digits, to the millisecond."""
    if seconds is None:
        return MISSING
    return f"{seconds:.0f}" if seconds >= 100 else f"{seconds:.{1 if seconds >= 10 else 2 if seconds >= 1 else 3}f}"


def _ratio(row: Row, name: str) -> str:
    return f"{row[f'ratio_{name}']:.2f}" if f"ratio_{name}" in row else MISSING
