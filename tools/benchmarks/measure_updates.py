"""tools/bench_gpu.py after its options: measure every variant on the ranks of this job, print and write what rank 0 knows."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.flops import matmul_peak
from benchmarks.settings import check_out, software
from benchmarks.targets import Figures, figures, figures_table
from benchmarks.update import Measured, Updates, measure
from benchmarks.variants import variants
from megatron_atesd.errors import ConfigError
from megatron_atesd.parallel.groups import is_main
from megatron_atesd.parallel.session import processes, start_minutes
from megatron_atesd.plan.hardware import sxm_board

WIDTH = 110


def run(
    shape: str,
    settings: Sequence[str],
    also: Sequence[str],
    tokens: Mapping[str, int],
    repeats: tuple[int, int],
    device: str,
    out: Path | None,
) -> None:
    """Measure on `device`, cuda or cpu; see variants for the other arguments. Raises ConfigError for what cannot be measured here."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch finds no CUDA device, so there is nothing to measure; to try the path: --device cpu --shape tiny")
    check_out(out)
    wanted = variants(shape, settings, also, tokens, repeats, int(os.environ.get("WORLD_SIZE", "1")))
    with processes(start_minutes(wanted[0].config.parallel)):
        board = sxm_board(torch.cuda.get_device_name()) if device == "cuda" else None
        matmul = matmul_peak(wanted[0].config.model.dtype, device)
        rows = [figures(updates, _measured(updates), board and board.flops, matmul) for updates in wanted]
        if is_main():
            _report(rows, wanted[0], shape, device, matmul, out)


def _measured(updates: Updates) -> Measured:
    if is_main():
        Console(stderr=True).print(f"{updates.name}: {updates.warmup} + {updates.steps} updates")
    return measure(updates)


def _report(rows: Sequence[Figures], first: Updates, shape: str, device: str, matmul: float, out: Path | None) -> None:
    judged = device == "cuda" and shape == "1.7b" and first.config.model.dtype == "bf16" and first.world == 1
    context = dict(software(device)) | {"ranks": first.world, "steps": first.steps, "warmup": first.warmup, "matmul_flops": matmul}
    console = Console(width=max(WIDTH, Console().width))
    console.print(figures_table(rows, judged))
    console.print(f"{context['device']}, {first.world} ranks; best large {first.config.model.dtype} product: {matmul / 1e12:.4g} TFLOP/s")
    if out:
        out.write_text(json.dumps({"environment": context, "judged": judged, "variants": rows}, indent=2) + "\n", encoding="utf-8")
