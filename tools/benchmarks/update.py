"""Whole updates of a model with random weights, on the ranks of this job: rollout, both passes, loss and optimizer, timed by phase."""

import gc
import statistics
from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core import parallel_state

from benchmarks.measurement import Measurement
from benchmarks.ours import timed_update
from benchmarks.watch import PeakMemory, Stopwatch
from benchmarks.worker import measure_loss
from benchmarks.workload import Workload, draw_ids
from megatron_atesd.config import TrainConfig
from megatron_atesd.distill.fused import distill_loss
from megatron_atesd.distill.readings import Example
from megatron_atesd.distill.step import Loss, StepResult, distill_step, divergence_of
from megatron_atesd.distill.teacher import Teacher
from megatron_atesd.errors import ConfigError
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.gpt import HiddenStateGPT, build_model
from megatron_atesd.model.lora import add_adapters
from megatron_atesd.model.megatron_config import megatron_settings
from megatron_atesd.model.trained import lora_settings
from megatron_atesd.parallel.groups import data_parallel_place, gathered
from megatron_atesd.parallel.session import session_of
from megatron_atesd.plan.memory import rank_memory
from megatron_atesd.plan.planned_update import Lengths, planned_update
from megatron_atesd.rollout.training_engine import TrainingEngine
from megatron_atesd.train.optimizer import Optimization, build_optimization

Row = dict[str, Any]


@dataclass(frozen=True)
class Updates:
    """What to measure: `steps` updates after `warmup` others, of `world` processes; every sequence has the same lengths."""

    name: str
    config: TrainConfig
    arch: Architecture
    lengths: Lengths
    world: int
    steps: int
    warmup: int

    @property
    def model_ranks(self) -> int:
        """Processes that one model is divided among."""
        parallel = self.config.parallel
        return parallel.tensor * parallel.pipeline * parallel.context

    @property
    def workload(self) -> Workload:
        """The update of one data-parallel rank."""
        arch, lengths = self.arch, self.lengths
        sizes = (arch.layers, arch.hidden, arch.heads, arch.query_groups, arch.head_size, arch.ffn, arch.vocabulary, arch.tied)
        prompts = self.config.data.batch * self.model_ranks // self.world
        return Workload(self.name, *sizes, prompts, lengths.student, lengths.teacher - lengths.student, lengths.response)


@dataclass(frozen=True)
class Measured:
    """ranks: of each, seconds by phase of every measured update (`steps`), GiB of memory, measured and planned, and the first loss.

    loss_part: median seconds of the loss alone and of its four matrix products, on one rank and the whole vocabulary.
    """

    ranks: list[Row]
    loss_part: dict[str, float]


def measure(updates: Updates) -> Measured:
    """Collective over all ranks, which must be in a process group. Raises ConfigError when the GPU's memory is too small."""
    with session_of(updates.config.parallel):
        try:
            row = measure_rank(updates)
            _free()
            loss_part = {name: _loss_seconds(updates, contender) for name, contender in _loss_contenders(updates.config).items()}
        except torch.OutOfMemoryError as error:
            planned = rank_memory(planned_update(updates.config, updates.arch, updates.world, updates.lengths), 0).peak / 2**30
            raise ConfigError(
                f"{updates.name} does not fit this GPU: {planned:.1f} GiB are planned. Divide the model (parallel.tensor under torchrun), "
                f"or lower parallel.micro_batch_tokens, distill.chunk or data.batch ({error})"
            ) from None
        return Measured(gathered(row), loss_part)


def measure_rank(updates: Updates) -> Row:
    """This rank's row of `Measured.ranks`."""
    memory, found = PeakMemory(_device()), []
    parts = build(updates)
    for index in range(updates.warmup + updates.steps):
        if index == updates.warmup:
            memory.reset()
        found.append(one_update(updates, parts, index))
    stage = parallel_state.get_pipeline_model_parallel_rank()
    planned = rank_memory(planned_update(updates.config, updates.arch, updates.world, updates.lengths), stage).peak / 2**30
    steps, losses = zip(*found, strict=True)
    return {"steps": steps[updates.warmup :], "loss": losses[0], "planned_gib": planned, **memory.figures()}


@dataclass(frozen=True)
class Parts:
    """What an update needs; ids: prompts and references of this data-parallel rank."""

    model: HiddenStateGPT
    teacher: Teacher
    optimization: Optimization
    ids: dict[str, list[list[int]]]


def build(updates: Updates) -> Parts:
    """As training builds them, with random weights and ids."""
    config, distill = updates.config, updates.config.distill
    model = build_model(updates.arch, megatron_settings(config, updates.arch), config.parallel.packed)
    if config.lora.rank:
        add_adapters(model, lora_settings(config.lora, config.model.dtype))
    new = not config.lora.start
    teacher = Teacher(model, distill.teacher, distill.ema_decay, distill.teacher_offload, config.precision.teacher, new)
    total = updates.warmup + updates.steps
    optimization = build_optimization(model, config.optimizer, config.ddp, config.schedule, total)
    return Parts(model, teacher, optimization, draw_ids(updates.workload, 1 + data_parallel_place()[0]))


def one_update(updates: Updates, parts: Parts, index: int) -> tuple[dict[str, float], float]:
    """Seconds by phase, and the loss. Every response is as long as the others: there is no stop id."""
    config, watch, prompts = updates.config, Stopwatch(), parts.ids["prompts"]
    seeds = range(index * len(prompts), (index + 1) * len(prompts))
    engine = TrainingEngine(parts.model, (), precision=config.precision.rollout)
    with watch.phase("rollout"):
        responses = engine.generate(prompts, seeds, replace(config.rollout, max_new_tokens=updates.lengths.response))
    asked = zip(prompts, parts.ids["references"], responses, strict=True)
    unaided = config.distill.target == "mix_unaided"
    examples = [
        Example(prompt, full := [*prompt, *reference], response.ids, second_prompt=prompt if unaided else full)
        for prompt, reference, response in asked
    ]
    settings = (divergence_of(config), config.parallel.micro_batch_tokens, config.distill.normalize)

    def passes(loss: Loss) -> StepResult:
        return distill_step(parts.optimization.wrapped, parts.model, parts.teacher, examples, *settings, loss)

    result, _ = timed_update(watch, parts.optimization, distill_loss, passes)
    with watch.phase("optimizer"):
        parts.optimization.weights_ready()  # in training a probe follows, behind which ddp.overlap_param_gather hides
        parts.teacher.update()
    return dict(watch.seconds), result.loss


def _loss_contenders(config: TrainConfig) -> dict[str, str]:
    head = "-frozen" if config.lora.rank else ""
    return {"loss": ("compiled" if config.distill.compile else "fused") + head, "products": "products" + head}


def _loss_seconds(updates: Updates, contender: str) -> float:
    config, work = updates.config, updates.workload
    device = _device()
    measurement = Measurement(
        contender, work, config.model.dtype, device, 1, updates.steps, updates.warmup, config.distill.chunk, tokens=work.tokens
    )
    seconds = statistics.median(measure_loss(measurement)["seconds"])
    _free()
    return seconds


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _free() -> None:
    """Give back what the last measurement held; wrapped models refer to themselves."""
    gc.collect()
    torch.cuda.empty_cache()
