"""This project's engine on one process, as training runs it; the loss can be exchanged."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.dense import dense_loss
from benchmarks.flops import DTYPES
from benchmarks.measurement import CLIP_NORM, LEARNING_RATE, Measurement, Step
from benchmarks.watch import Stopwatch
from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.config import ScheduleConfig
from megatron_atesd.distill.divergence import Divergence
from megatron_atesd.distill.fused import distill_loss
from megatron_atesd.distill.readings import Example
from megatron_atesd.distill.step import Loss, StepResult, distill_step
from megatron_atesd.distill.teacher import Teacher
from megatron_atesd.model.gpt import HiddenStateGPT, build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.lora import LoraSettings, adapter_parameters, add_adapters
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.train.optimizer import Optimization, build_optimization

LOSSES = {"ours": distill_loss, "ours-lora": distill_loss, "naive": dense_loss}


@contextmanager
def engine(task: Measurement) -> Iterator[Step]:
    """A step with the weights of the task's model folder; teacher, student and loss add up to the whole of distill_step."""
    with parallel_session():
        architecture = read_architecture(Path(task.model))
        model = build_model(architecture, transformer_config(architecture, 1, 1, False, task.dtype))
        load_hf_weights(model, Path(task.model))
        if task.lora:
            add_adapters(model, LoraSettings(task.lora_rank, task.lora_alpha, dtype=DTYPES[task.dtype]))
            start_adapters(model, Path(task.adapters))
        teacher = Teacher(model, "initial")
        optimizer = {"lr": LEARNING_RATE, "clip_grad": CLIP_NORM, "weight_decay": 0.0}
        optimization = build_optimization(model, optimizer, {}, ScheduleConfig(), task.warmup + task.steps)

        def step(watch: Stopwatch) -> tuple[float, float]:
            def passes(loss: Loss) -> StepResult:
                return passes_of(task, optimization.wrapped, model, teacher, loss)

            result, norm = timed_update(watch, optimization, LOSSES[task.contender], passes)
            return result.loss, norm

        yield step


@torch.no_grad()
def start_adapters(model: HiddenStateGPT, path: Path) -> None:
    """Take over A from the file of `workload.save_adapters`; B is zero."""
    parameters = adapter_parameters(model)
    for name, value in load_file(path).items():
        parameters[name].copy_(value)


def timed_update(
    watch: Stopwatch, optimization: Optimization, loss: Loss, passes: Callable[[Loss], StepResult]
) -> tuple[StepResult, float]:
    """Result of `passes` (distill_step with the loss it is given) and the gradient norm; seconds of teacher, student, loss, optimizer."""
    with watch.phase("optimizer"):
        optimization.zero_grad()
    with watch.phase("student"):
        result = passes(watch.timed_loss(loss))
    watch.seconds["teacher"] = result.teacher_seconds
    watch.seconds["student"] -= result.teacher_seconds + watch.seconds["loss"]
    with watch.phase("optimizer"):
        norm, _ = optimization.step()
    return result, norm


def passes_of(task: Measurement, wrapped: Any, model: Any, teacher: Teacher, loss: Loss) -> StepResult:
    """The engine's step over the task's examples."""
    roles = zip(task.ids["prompts"], task.ids["references"], task.ids["responses"], strict=True)
    examples = [Example(prompt, [*prompt, *reference], response) for prompt, reference, response in roles]
    tokens = task.workload.sequences * task.workload.teacher_length
    return distill_step(wrapped, model, teacher, examples, Divergence(chunk=task.chunk), tokens, loss=loss)
