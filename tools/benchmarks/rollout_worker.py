"""One measurement of rollouts: python -m [torch.distributed.run … -m] benchmarks.rollout_worker TASK.json RESULT.json"""

import json
import os
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.generators import GENERATORS
from benchmarks.rollout_task import RolloutTask
from benchmarks.watch import PeakMemory, now
from megatron_atesd.parallel.groups import gathered

WARM_UP = 4  # tokens of each response
MEASURED_SECONDS = 3.0  # a shorter call is repeated


def measure(task: RolloutTask) -> Mapping[str, Any]:
    """Median seconds of a call, processor seconds of one (of all processes), what one generated, and the fullest process's peak memory.

    The memory is that over what was there before the first measured call, or before the engine was built where it is vLLM, which allocates
    its cache then.
    """
    with GENERATORS[task.engine](task) as (generate, memory):
        generate(task.prompts[: min(task.batch, 8)], replace(task.sampling, max_new_tokens=WARM_UP))
        if task.engine != "vllm":
            memory = PeakMemory(task.device)
        memory.reset()
        seconds: list[float] = []
        used = time.process_time()
        while sum(gathered(sum(seconds))) < MEASURED_SECONDS * task.tensor:
            started = now()
            generated = generate(task.prompts, task.sampling)
            seconds.append(now() - started)
        processor_seconds = sum(gathered(time.process_time() - used)) / len(seconds)
        peak = max(gathered(memory.figures()["over_start_gib"]))
        return {"seconds": statistics.median(seconds), "processor_seconds": processor_seconds, "peak_gib": peak, **asdict(generated)}


def main() -> None:
    task = RolloutTask.load(Path(sys.argv[1]))
    torch.set_num_threads(task.threads)
    result = measure(task)
    if os.environ.get("RANK", "0") == "0":
        Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
