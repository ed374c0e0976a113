"""Dry runs as a table: what each rank allocated and what it sent."""

from collections.abc import Sequence

from rich.table import Table

from megatron_atesd.plan.dry_run import DryRun
from megatron_atesd.plan.tables import gib


def dry_run_table(runs: Sequence[DryRun]) -> Table:
    """What the dry run allocated, GiB, and the traffic that it saw, GB."""
    table = Table("dry run", *(f"stage {run.stage}, rank {run.rank}" for run in runs))
    shapes = [(run.micro_batches, run.shapes) for run in runs]
    table.add_row("micro-batches × sequences × tokens", *(f"{number} × {s.sequences} × {s.length:,}" for number, s in shapes))
    table.add_row("parameters held (millions)", *(f"{run.parameters / 1e6:,.0f}" for run in runs))
    table.add_row("trained parameters (millions)", *(f"{run.trained / 1e6:,.0f}" for run in runs))
    for name in ("weights", "gradients", "optimizer", "teacher", "activations"):
        table.add_row(f"{name}, GiB", *(gib(getattr(run, name)) for run in runs))
    seen = [{(phase, t.group, t.kind): t for phase, found in run.traffic.items() for t in found} for run in runs]
    for key in sorted({key for run in seen for key in run}):
        cells = [f"{run[key].calls} calls, {run[key].bytes / 1e9:.3f} GB" if key in run else "" for run in seen]
        table.add_row(f"{key[0]}: {key[2]} ({key[1]})", *cells)
    return table
