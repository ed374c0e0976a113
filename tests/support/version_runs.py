"""Trainings that each version of megatron.core does: from the start, and on from where another one was broken off."""

import json
import shutil
from pathlib import Path

import torch.distributed as dist

from megatron_atesd.config import load_config
from megatron_atesd.train.loop import train
from tests.support.launch import run_distributed
from tests.support.small_run import arguments

BROKEN, UPDATES = 2, 4
SMALL = [f"--run.updates={UPDATES}", f"--checkpoint.every={BROKEN}", "--data.batch=4", "--rollout.max_new_tokens=8", "--monitor.samples=0"]
# All on two ranks, with an ema teacher and a learned controller.
RUNS = {
    "plain optimizer, TP 2": [],
    "distributed optimizer, bf16, DP 2": ["--parallel.tensor=1", "--model.dtype=bf16", "--optimizer.use_distributed_optimizer=true"],
    "LoRA, TP 2": ["--lora.rank=4", "--optimizer.lr=0.01"],
}
# Which run goes on at which other layout.
MOVES = {
    "TP 2 to PP 2": ("plain optimizer, TP 2", ["--parallel.tensor=1", "--parallel.pipeline=2"]),
    "TP 2 to DP 2": ("plain optimizer, TP 2", ["--parallel.tensor=1"]),
    "DP 2 to TP 2": ("distributed optimizer, bf16, DP 2", [*RUNS["distributed optimizer, bf16, DP 2"], "--parallel.tensor=2"]),
}


def unbroken(inputs: Path, folder: Path) -> None:
    """folder/<run>, from the start to the end."""
    run_distributed(train_all, 2, inputs, {folder / name: overrides for name, overrides in RUNS.items()})


def continued(inputs: Path, runs: Path, folder: Path) -> None:
    """folder/<run>: each of `runs` as it was after update 2, and on to the end."""
    run_distributed(train_all, 2, inputs, {break_off(runs / name, folder / name): overrides for name, overrides in RUNS.items()})


def moved(inputs: Path, runs: Path, folder: Path) -> None:
    """folder/<move>: the same, at another layout."""
    run_distributed(train_all, 2, inputs, {break_off(runs / name, folder / move): layout for move, (name, layout) in MOVES.items()})


def train_all(inputs: Path, runs: dict[Path, list[str]]) -> None:
    """On each rank: the trainings in these directories, each with more settings."""
    dist.init_process_group("gloo")
    for run_dir, overrides in runs.items():
        train(load_config([*arguments(inputs, run_dir, *SMALL), *overrides]))


def break_off(run_dir: Path, copy: Path) -> Path:
    """What the run had left when its second update was saved."""
    shutil.copytree(run_dir, copy, ignore=shutil.ignore_patterns(f"step_{UPDATES}", "summary.json", "tensorboard"))
    (copy / "checkpoints" / "latest").write_text(f"step_{BROKEN}\n")
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["update"] <= BROKEN))
    return copy
