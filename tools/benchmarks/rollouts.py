"""The benchmark of rollouts: measurements in turns, medians over the repeats, and speeds as ratios to transformers' of the same run."""

import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.parts import with_ratios
from benchmarks.process import MeasurementError, result_of
from benchmarks.rollout_model import save_rollout_model
from benchmarks.rollout_settings import RolloutSettings
from benchmarks.rollout_task import LONGEST, RolloutTask, draw_prompts
from benchmarks.workload import Workload
from megatron_atesd.errors import ConfigError

OWN, BASELINE = "training", "transformers"
SEED = 1

Row = dict[str, Any]
Say = Callable[[str], None]


def rollout_rows(workloads: Sequence[Workload], settings: RolloutSettings, say: Say) -> list[Row]:
    """One row for each workload, batch, lengths, engine and tensor-parallel size; `ratio_…` are to transformers'."""
    engines = [name for name in settings.engines if name != "vllm" or _vllm_is_there(say)]
    if not engines:
        raise ConfigError("--engines leaves nothing to measure; name one more")
    cases = list(product(settings.batches, settings.lengths))
    rows: list[Row] = []
    for workload in workloads:
        with tempfile.TemporaryDirectory() as folder:
            save_rollout_model(replace(workload, response_tokens=max(LONGEST, workload.response_tokens)), Path(folder), SEED)
            for number, (batch, lengths) in enumerate(cases, 1):
                say(f"{workload.name}: {number} of {len(cases)}")
                tasks = list(_tasks(workload, batch, lengths, engines, settings, folder))
                found = [_row(task, results) for task, results in _in_turns(tasks, settings.repeats, say) if results]
                rows += with_ratios(found, "engine", BASELINE, {name: name for name in ("tokens_per_second", "processor_seconds")})
    return rows


def _vllm_is_there(say: Say) -> bool:
    found = find_spec("vllm") is not None
    if not found:
        say("vllm left out: it is not installed here")
    return found


def _tasks(
    workload: Workload, batch: int, lengths: str, engines: Sequence[str], settings: RolloutSettings, folder: str
) -> Iterator[RolloutTask]:
    prompts, limit = draw_prompts(workload, batch, lengths, SEED)
    machine = (settings.dtype, settings.device, settings.threads, folder, prompts, limit)
    for engine in engines:
        for tensor in settings.tensors if engine == OWN else (1,):
            yield RolloutTask(workload, batch, lengths, engine, tensor, *machine)


def _in_turns(tasks: Sequence[RolloutTask], repeats: int, say: Say) -> list[tuple[RolloutTask, list[Row]]]:
    """Results of every repeat of every measurement; what this project is compared with may fail and is then left out, with the reason."""
    found: list[tuple[RolloutTask, list[Row]]] = [(task, []) for task in tasks]
    for _ in range(repeats):
        for task, results in list(found):
            say(f"{task.name}: {len(task.prompts)} prompts …")
            try:
                results.append(result_of(_worker(task), task, gpus=task.tensor))
            except MeasurementError as error:
                if task.engine == OWN:
                    raise
                say(f"{error}; left out")
                found.remove((task, results))
                continue
            say(f"  {results[-1]['tokens'] / results[-1]['seconds']:.0f} tokens/s, {results[-1]['seconds']:.1f} s")
    return found


def _worker(task: RolloutTask) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={task.tensor}"] if task.tensor > 1 else []
    return [sys.executable, *launcher, "-m", "benchmarks.rollout_worker"]


def _row(task: RolloutTask, results: Sequence[Row]) -> Row:
    slots, cache, tokens = (results[0][name] for name in ("slots", "cache_bytes", "token_bytes"))
    return {
        "workload": task.workload.name,
        "batch": task.batch,
        "lengths": task.lengths,
        "engine": task.engine,
        "tensor": task.tensor,
        "prompts": len(task.prompts),
        "tokens": results[0]["tokens"],
        "seconds": statistics.median(result["seconds"] for result in results),
        "processor_seconds": statistics.median(result["processor_seconds"] for result in results),
        "tokens_per_second": statistics.median(result["tokens"] / result["seconds"] for result in results),
        "slot_use": results[0]["tokens"] / slots if slots else None,
        "peak_gib": statistics.median(result["peak_gib"] for result in results),
        "cache_peak_gib": cache / 2**30 if cache is not None else None,
        "token_peak_gib": tokens / 2**30 if tokens is not None else None,
        "sampling": asdict(task.sampling),
    }
