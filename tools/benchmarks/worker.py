"""One measurement: python -m benchmarks.worker TASK.json RESULT.json"""

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.measurement import Measurement
from benchmarks.watch import PeakMemory, Stopwatch, now

STEPS = {"ours": ("ours", "engine"), "ours-lora": ("ours", "engine"), "naive": ("ours", "engine"), "plain": ("plain", "plain")}


def measure_step(task: Measurement) -> Mapping[str, Any]:
    """Seconds by phase of each measured step, loss and gradient norm of the first step of all, peak memory of the measured ones."""
    importlib.import_module("transformers.models.qwen3.configuration_qwen3")  # code is no part of the memory over the start
    module, name = STEPS[task.contender]
    contender = getattr(importlib.import_module(f"benchmarks.{module}"), name)
    memory, steps, first = PeakMemory(task.device), [], None
    with contender(task) as step:
        for index in range(task.warmup + task.steps):
            if index == task.warmup:
                memory.reset()
            watch = Stopwatch()
            result = step(watch)
            first = first or result
            steps.append(dict(watch.seconds))
    assert first is not None
    return {"steps": steps[task.warmup :], "loss": first[0], "grad_norm": first[1], **memory.figures()}


def measure_loss(task: Measurement) -> Mapping[str, Any]:
    """Seconds of each measured run of the loss part, and its peak memory over its inputs."""
    from benchmarks.loss_part import loss_part

    work, seconds = loss_part(task), []
    memory = PeakMemory(task.device)
    for _ in range(task.warmup + task.steps):
        started = now()
        work()
        seconds.append(now() - started)
    return {"seconds": seconds[task.warmup :], **memory.figures()}


def main() -> None:
    task = Measurement.load(Path(sys.argv[1]))
    torch.set_num_threads(task.threads)
    result = measure_step(task) if task.contender in STEPS else measure_loss(task)
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
