"""One measurement: python -m benchmarks.worker JOB.json RESULT.json"""

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.job import Job
from benchmarks.watch import PeakMemory, Stopwatch, now

STEPS = {"ours": ("ours", "engine"), "naive": ("ours", "engine"), "plain": ("plain", "plain")}


def measure_step(job: Job) -> Mapping[str, Any]:
    """Seconds by phase of each measured step, loss and gradient norm of the first step of all, peak memory of the measured ones."""
    importlib.import_module("transformers.models.qwen3.configuration_qwen3")  # code is no part of the memory over the start
    module, name = STEPS[job.contender]
    contender = getattr(importlib.import_module(f"benchmarks.{module}"), name)
    memory, steps, first = PeakMemory(job.device), [], None
    with contender(job) as step:
        for index in range(job.warmup + job.steps):
            if index == job.warmup:
                memory.reset()
            watch = Stopwatch()
            result = step(watch)
            first = first or result
            steps.append(dict(watch.seconds))
    assert first is not None
    return {"steps": steps[job.warmup :], "loss": first[0], "grad_norm": first[1], **memory.figures()}


def measure_loss(job: Job) -> Mapping[str, Any]:
    """Seconds of each measured run of the loss part, and its peak memory over its inputs."""
    from benchmarks.loss_part import loss_part

    work, seconds = loss_part(job), []
    memory = PeakMemory(job.device)
    for _ in range(job.warmup + job.steps):
        started = now()
        work()
        seconds.append(now() - started)
    return {"seconds": seconds[job.warmup :], **memory.figures()}


def main() -> None:
    job = Job.load(Path(sys.argv[1]))
    torch.set_num_threads(job.threads)
    result = measure_step(job) if job.contender in STEPS else measure_loss(job)
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
