"""Memory and speed of both conversions and of a plain copy, each in a process of its own (tools/bench_convert.py)."""

import json
import multiprocessing
import os
import shutil
import subprocess
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table


def save_model(folder: Path, args: Namespace) -> None:
    """A random Qwen3 model, written tensor by tensor."""
    from transformers import Qwen3Config

    from checkpoints_convert.safetensors_out import SafetensorsFolder
    from megatron_atesd.checkpoint.name_table import name_table
    from megatron_atesd.model.hf_config import read_architecture

    config = Qwen3Config(
        hidden_size=args.hidden,
        intermediate_size=args.ffn,
        num_attention_heads=args.heads,
        num_key_value_heads=args.groups,
        head_dim=args.head_size,
        num_hidden_layers=args.layers,
        vocab_size=args.vocabulary,
        tie_word_embeddings=not args.untied,
        architectures=["Qwen3ForCausalLM"],
    )
    config.save_pretrained(folder)
    shapes = {name: shape for entry in name_table(read_architecture(folder)) for name, shape in entry.sources.items()}
    meta = {name: torch.empty(shape, dtype=torch.bfloat16, device="meta") for name, shape in shapes.items()}
    out = SafetensorsFolder(folder, meta, shard_bytes=10**15)
    for name, shape in shapes.items():
        out.append(name, torch.randn(shape, dtype=torch.bfloat16))
    out.close()


def measure(work: Path) -> Iterator[dict[str, float | str]]:
    """One run of each kind, from and to folders of `work`."""
    for name, task, source, target in (
        ("plain copy", copy, "hf", "copy"),
        ("Hugging Face → Megatron", to_megatron, "hf", "megatron"),
        ("Megatron → Hugging Face", to_hf, "megatron", "back"),
    ):
        shutil.rmtree(work / target, ignore_errors=True)
        drop_pages(work / source)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            yield {"run": name, **pool.apply(timed, (task, work / source, work / target))}


def drop_pages(folder: Path) -> None:
    """Take the files of `folder` out of the page cache, once they are on the disk."""
    os.sync()
    for path in (path for path in folder.rglob("*") if path.is_file()):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def timed(task: Callable[[Path, Path], None], source: Path, target: Path) -> dict[str, float]:
    """Seconds and peak resident bytes of `task`, which this process must not have done before."""
    from transformers import AutoConfig  # noqa: F401 - with the next line, every library that a conversion needs

    import checkpoints_convert.verify  # noqa: F401

    before, start, processor = peak_bytes(), time.perf_counter(), sum(os.times()[:4])
    task(source, target)
    seconds, processor = time.perf_counter() - start, sum(os.times()[:4]) - processor
    return {"seconds": seconds, "processor_seconds": processor, "before_bytes": before, "peak_bytes": peak_bytes()}


def peak_bytes() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def copy(source: Path, target: Path) -> None:
    from megatron_atesd.checkpoint.folders import sync_tree

    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    sync_tree(target)


def to_megatron(source: Path, target: Path) -> None:
    from checkpoints_convert.hf_to_megatron import convert

    convert(source, target)


def to_hf(source: Path, target: Path) -> None:
    from checkpoints_convert.megatron_to_hf import convert
    from megatron_atesd.checkpoint.model_folder import find_model_folder

    convert(find_model_folder(source), target)  # which checks the checksums first


def report(rows: list[dict[str, float | str]], size: int, out: Path | None) -> None:
    """Print medians beside the targets; write all runs to `out`."""
    table = Table(title=f"Conversion of {size / 1e9:.2f} GB of bf16 weights; {repeats(rows)} runs each, medians")
    for column in (
        "run",
        "seconds",
        "processor s",
        "GB/s",
        "speed ÷ copy (target ≥ 0.5)",
        "before, MB",
        "peak, MB",
        f"limit, MB: {limit(size) / 1e6:.0f}",
    ):
        table.add_column(column, justify="left" if column == "run" else "right")
    figures = [summary(name, [row for row in rows if row["run"] == name]) for name in dict.fromkeys(str(row["run"]) for row in rows)]
    for figure in figures:
        share = figures[0]["seconds"] / figure["seconds"]
        kept = "kept" if figure["peak_bytes"] <= limit(size) else "exceeded"
        values = (figure["seconds"], figure["processor_seconds"], size / 1e9 / figure["seconds"], share)
        memory = (f"{figure[name] / 1e6:.0f}" for name in ("before_bytes", "peak_bytes"))
        table.add_row(str(figure["run"]), *(f"{value:.2f}" for value in values), *memory, kept)
    Console(width=max(150, Console().width)).print(table)
    if out:
        out.write_text(json.dumps({"size_bytes": size, "limit_bytes": limit(size), "medians": figures, "runs": rows}, indent=2) + "\n")


def repeats(rows: list[dict[str, float | str]]) -> int:
    return sum(row["run"] == rows[0]["run"] for row in rows)


def limit(size: int) -> float:
    """Target of the peak, bytes."""
    return 1.1 * size + 500e6


def summary(name: str, rows: list[dict[str, float | str]]) -> dict[str, Any]:
    """Medians of the runs called `name`; of the peaks the largest."""
    return {
        "run": name,
        **{key: median(float(row[key]) for row in rows) for key in ("seconds", "processor_seconds", "before_bytes")},
        "peak_bytes": max(float(row["peak_bytes"]) for row in rows),
    }
