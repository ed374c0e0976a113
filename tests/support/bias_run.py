"""A small run that can be bias-checked, and all of its state as plain bytes."""

from pathlib import Path
from typing import Any

import torch
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

from megatron_atesd.config import load_config
from megatron_atesd.records import Exposure
from megatron_atesd.train.checks import check_before_work
from megatron_atesd.train.heartbeat import Heartbeat
from megatron_atesd.train.loop import train_step
from megatron_atesd.train.progress import Finished
from megatron_atesd.train.training_run import TrainingRun
from tests.support.small_run import arguments

# A learning rate that is another in each update, and weight decay.
SETTINGS = ("--exposure.bias_check=2", "--exposure.probe_samples=2", "--schedule.warmup_updates=3", "--schedule.decay=cosine")


def start(inputs: Path, *overrides: str, world_size: int = 1) -> TrainingRun:
    """Before its first update; on one tensor rank unless told otherwise."""
    given = ("--parallel.tensor=1", *SETTINGS, "--optimizer.weight_decay=0.1", *overrides)
    config = load_config(arguments(inputs, inputs / "run", *given))
    model_parallel_cuda_manual_seed(config.run.seed, force_reset_rng=True)  # as in a process of its own
    torch.manual_seed(config.run.seed)
    return TrainingRun(config, check_before_work(config, world_size))


def state_of(run: TrainingRun) -> dict[str, Any]:
    """What this rank's next updates depend on, every bit of it; equal states are equal."""
    run.optimization.weights_ready()
    part, run_state = run.optimization.part, run.state(0)["run"]
    return {
        "weights": [_bytes(p) for p in run.model.parameters()],
        "teacher": [_bytes(w) for w in (*run.teacher.weights, *run.teacher.average)],
        "masters": [_bytes(p) for p in part.get_parameters()],
        "moments": [
            {name: _bytes(value) for name, value in sorted(part.optimizer.state.get(p, {}).items()) if isinstance(value, torch.Tensor)}
            for p in part.get_parameters()
        ],
        "rates": [(group["lr"], group["weight_decay"], group.get("step") or 0) for group in part.optimizer.param_groups],
        "rest": repr({name: run_state[name] for name in ("scheduler", "sampler", "exposure", "scaling_history", "skipped_in_a_row")}),
        "own": (run_state["probe_responses"], run_state["probe_right"]),
        "rng": [{name: _bytes(value) for name, value in rank.items() if name == "torch"} for rank in run_state["rng"]],
        "tracker": [{name: _bytes(value) for name, value in rank["tracker"].items()} for rank in run_state["rng"]],
    }


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def next_update(run: TrainingRun) -> dict[str, Any]:
    """Its first update's metrics, without times, and the state after it."""
    stats, _ = run.probe(Finished(0), Exposure(run.config.exposure.warmup_exposure, -1))
    run.service.observe(stats)
    with Heartbeat(1.0) as heartbeat:
        metrics, _ = train_step(run, 0, heartbeat)
    measured = {name: value for name, value in metrics.items() if not name.startswith(("time/", "perf/", "memory/"))}
    return {"metrics": measured, "state": state_of(run)}
