"""Both parts of the benchmark: measurements in turns, medians over steps and repeats, and ratios."""

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.flops import matmul_peak, step_flops
from benchmarks.measurement import Measurement
from benchmarks.process import MeasurementError, measured, trl_is_there
from benchmarks.settings import Settings
from benchmarks.workload import Workload, draw_ids, save_adapters, save_model
from megatron_atesd.errors import ConfigError
from megatron_atesd.model.counts import loss_flops

LOSS_METHODS = ("fused", "compiled", "dense", "products")
LORA_METHODS = ("fused", "fused-frozen", "products", "products-frozen")
OWN = ("ours", "ours-lora", "fused", "fused-frozen")
PHASES = ("teacher", "student", "loss")
SEED = 1

Row = dict[str, Any]
Say = Callable[[str], None]


def step_part(workloads: Sequence[Workload], settings: Settings, say: Say) -> list[Row]:
    """One row for each workload, dtype and contender: times, memory, FLOP rate and ratios to the baseline."""
    asked = [name for name in settings.contenders if name.startswith("trl")]
    there = trl_is_there(settings.trl_python, say, "trl-lora" in asked) if asked else False
    contenders = [name for name in settings.contenders if there or name not in asked]
    if not contenders:
        raise ConfigError("--contenders leaves nothing to measure; name one more")
    rows: list[Row] = []
    for workload in workloads:
        with tempfile.TemporaryDirectory() as folder:
            save_model(workload, Path(folder), SEED)
            adapters = str(Path(folder) / "adapters.start")
            save_adapters(workload, settings.lora_rank, Path(adapters), SEED)
            ids = draw_ids(workload, SEED)
            for dtype in settings.dtypes:
                tasks = {name: _task(name, workload, dtype, settings, model=folder, ids=ids, adapters=adapters) for name in contenders}
                results, peak = _interleaved(tasks, settings, say)
                found = [_step_row(tasks[name], results[name], peak) for name in results]
                for baseline in settings.baselines:
                    of = {f"seconds_{baseline}": "training_seconds", f"memory_{baseline}": "over_start_gib"}
                    found = with_ratios(found, "contender", baseline, of)
                rows += found
    return _with_share_of_peak(rows)


def loss_part(workloads: Sequence[Workload], settings: Settings, say: Say) -> list[Row]:
    """One row for each workload, dtype, number of tokens and method; ratios to the products (time) and to whole logits (memory), of a
    frozen head both to one that learns."""
    rows: list[Row] = []
    methods, timed, held = (LORA_METHODS, "fused", "fused") if settings.lora else (LOSS_METHODS, "products", "dense")
    for workload in workloads:
        for dtype in settings.dtypes:
            for tokens in settings.tokens:
                tasks = {name: _task(name, workload, dtype, settings, tokens=tokens) for name in methods}
                results, peak = _interleaved(tasks, settings, say)
                found = [_loss_row(tasks[name], results[name], peak) for name in results]
                found = with_ratios(found, "method", timed, {"seconds": "seconds"})
                rows += with_ratios(found, "method", held, {"memory": "over_start_gib"})
    return _with_share_of_peak(rows)


def _task(contender: str, workload: Workload, dtype: str, settings: Settings, **more: Any) -> Measurement:
    lora = {"lora_rank": settings.lora_rank, "lora_alpha": settings.lora_alpha}
    return Measurement(
        contender, workload, dtype, settings.device, settings.threads, settings.steps, settings.warmup, settings.chunk, **lora, **more
    )


def _interleaved(tasks: Mapping[str, Measurement], settings: Settings, say: Say) -> tuple[dict[str, list[Row]], float]:
    """Results of every repeat of every measurement, in turns, and the best matmul speed seen between them (operations a second).

    What this project is compared with may fail (for want of memory, say): it is then left out, with the reason.
    """
    results: dict[str, list[Row]] = {name: [] for name in tasks}
    peak = 0.0
    for repeat in range(settings.repeats):
        for name in list(results):
            task = tasks[name]
            say(f"{task.name}, repeat {repeat + 1} of {settings.repeats}")
            peak = max(peak, _peak(task.dtype, settings))
            try:
                results[name].append(measured(task, settings.trl_python))
            except MeasurementError as error:
                if name in OWN:
                    raise
                say(f"{error}; left out")
                del results[name]
    return results, peak


def _peak(dtype: str, settings: Settings) -> float:
    torch.set_num_threads(settings.threads)
    return matmul_peak(dtype, settings.device)


def _step_row(task: Measurement, results: Sequence[Row], peak: float) -> Row:
    steps = [step for result in results for step in result["steps"]]
    seconds = {name: statistics.median(step[name] for step in steps) for name in steps[0]}
    training = statistics.median(sum(step[name] for name in PHASES) for step in steps)
    flops = step_flops(task.workload, task.lora_rank if task.lora else 0)
    return {
        "workload": task.workload.name,
        "dtype": task.dtype,
        "contender": task.contender,
        "seconds": seconds,
        "training_seconds": training,
        "tokens_per_second": task.workload.tokens / training,
        **_memory(results),
        "flops": flops,
        "matmul_peak": peak,
        "loss": results[0]["loss"],
        "grad_norm": results[0]["grad_norm"],
        **{name: value for name, value in results[0].items() if name == "versions"},
    }


def _loss_row(task: Measurement, results: Sequence[Row], peak: float) -> Row:
    seconds = statistics.median(second for result in results for second in result["seconds"])
    flops = loss_flops(task.workload.arch, task.tokens) * (3 / 4 if task.contender.endswith("-frozen") else 1)
    return {
        "workload": task.workload.name,
        "dtype": task.dtype,
        "method": task.contender,
        "tokens": task.tokens,
        "seconds": seconds,
        **_memory(results),
        "hidden_gib": 4 * task.tokens * task.workload.hidden / 2**30,
        "flops": flops,
        "matmul_peak": peak,
    }


def _memory(results: Sequence[Row]) -> Row:
    return {name: statistics.median(result[name] for result in results) for name in ("peak_gib", "over_start_gib")}


def with_ratios(rows: Sequence[Row], key: str, baseline: str, of: Mapping[str, str]) -> list[Row]:
    """The rows with `ratio_NAME` = value / the baseline row's; without that row they stay as they are."""
    base = next((row for row in rows if row[key] == baseline), None)
    if base is None:
        return list(rows)
    return [row | {f"ratio_{name}": row[field] / base[field] for name, field in of.items()} for row in rows]


def _with_share_of_peak(rows: Sequence[Row]) -> list[Row]:
    """The rows with the best matmul speed of their dtype in the whole run (a busy machine lowers it), and their FLOP rate's share of it."""
    best = {dtype: max(row["matmul_peak"] for row in rows if row["dtype"] == dtype) for dtype in {row["dtype"] for row in rows}}
    rates = [row["flops"] / row.get("training_seconds", row["seconds"]) for row in rows]
    return [
        row | {"matmul_peak": best[row["dtype"]], "share_of_peak": rate / best[row["dtype"]]} for row, rate in zip(rows, rates, strict=True)
    ]
