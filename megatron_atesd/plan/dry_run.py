"""One rank of any layout at any world size, on a laptop: the real model, optimizer and schedule without weights or other ranks.

Tensors are on the meta device (shapes without storage) and the process groups are fake (every call returns at once), so what is built
and called is what a training rank builds and calls: megatron.core's own allocation, the pipeline schedule, the loss, the collectives.
Not walked: sampling, whose shapes depend on sampled values, clipping and the metrics, which read values; every micro-batch is equally long.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any, cast

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_atesd.config import PrecisionConfig, TrainConfig
from megatron_atesd.distill.fused import distill_loss
from megatron_atesd.distill.step import divergence_of
from megatron_atesd.distill.teacher import Teacher
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.gpt import HiddenStateGPT, build_model
from megatron_atesd.model.lora import add_adapters
from megatron_atesd.model.megatron_config import megatron_settings
from megatron_atesd.model.micro_batches import MicroBatch, round_up
from megatron_atesd.model.schedule import LastStage, micro_batch_multiple, run_schedule
from megatron_atesd.model.trained import lora_settings, trained_parameters
from megatron_atesd.model.vocabulary import vocabulary_shard
from megatron_atesd.parallel import cpu_backend
from megatron_atesd.parallel.session import session_of
from megatron_atesd.plan.kept import KeptForBackward
from megatron_atesd.plan.traffic import Traffic, TrafficCounter
from megatron_atesd.train.optimizer import Optimization, build_optimization

META = torch.device("meta")


@dataclass(frozen=True)
class Shapes:
    """Of each micro-batch: so many sequences of `length` tokens, the last `response` of which the loss sees.

    Of these a rank sees one in `context`. packed: the sequences lie one after the other.
    """

    sequences: int
    length: int
    response: int
    context: int = 1
    packed: bool = False

    @classmethod
    def of(cls, config: TrainConfig) -> "Shapes":
        """The micro-batch of a recipe whose sequences are as long as it allows."""
        parallel = config.parallel
        multiple = parallel.tensor * (2 * parallel.context if parallel.context > 1 else 1)
        length = round_up(config.prompt.max_length + config.rollout.max_new_tokens, multiple)
        return cls(max(1, parallel.micro_batch_tokens // length), length, config.rollout.max_new_tokens, parallel.context, parallel.packed)


@dataclass(frozen=True)
class DryRun:
    """What one rank holds (bytes, as megatron.core and this project allocate them) and what it sends in one update, by phase.

    parameters: adapters included; trained: those of them that learn.

    The update has `micro_batches` of these `shapes` of teacher and student each. teacher: wherever it is kept
    (distill.teacher_offload). activations: the most that autograd keeps at one time, with the norms of a CPU, which keep more than
    CUDA's.
    """

    rank: int
    stage: int
    micro_batches: int
    shapes: Shapes
    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    teacher: int
    activations: int
    traffic: dict[str, list[Traffic]]


@dataclass(frozen=True)
class DryRank:
    """A rank to build and walk."""

    config: TrainConfig
    arch: Architecture
    world: int
    rank: int
    shapes: Shapes


def dry_runs(jobs: Sequence[DryRank]) -> list[DryRun]:
    """`dry_run` of each job, in a process of its own: fake groups and the stand-in device stay there."""
    with _hidden_gpus(), ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return list(pool.map(dry_run, jobs))


@contextmanager
def _hidden_gpus() -> Iterator[None]:
    """For processes that start inside. Hidden later it could be too late: imports may ask for GPUs, and the first answer stays."""
    name = "CUDA_VISIBLE_DEVICES"
    before = os.environ.get(name)
    os.environ[name] = ""
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def stage_ranks(config: TrainConfig, world: int) -> list[int]:
    """A rank of the first, of a middle and of the last pipeline stage, as far as there are such."""
    stages = config.parallel.pipeline
    return [stage * (world // stages) for stage in sorted({0, min(1, stages - 1), stages - 1})]


def dry_run(job: DryRank) -> DryRun:
    """Build and walk one rank in this process, which then can do nothing else with megatron.core (see `dry_runs`)."""
    cpu_backend.install(META)
    torch.nn.functional.scaled_dot_product_attention = _fused_attention
    config, arch = job.config, job.arch
    with fake_groups(config, job.world, job.rank):
        model = build_model(arch, megatron_settings(stand_in(config), arch))
        model.config.variable_seq_lengths = False  # pipeline stages would tell each other shapes as values
        if config.lora.rank:
            add_adapters(model, lora_settings(config.lora, config.model.dtype))
        teacher = Teacher(model, config.distill.teacher, config.distill.ema_decay, new_adapters=not config.lora.start)
        optimization = build_optimization(model, config.optimizer, config.ddp, config.schedule, config.run.updates)
        counter = TrafficCounter(group_names())
        stages = config.parallel.pipeline
        micro_batches = 2 * max(stages, micro_batch_multiple(model)) if stages > 1 else 1  # enough for the schedule's steady state
        parameters = list(model.parameters())
        kept = KeptForBackward(parameters)
        _walk(model, optimization, teacher, config, [_batch(job.shapes)] * micro_batches, counter, kept)
        return DryRun(
            rank=job.rank,
            stage=parallel_state.get_pipeline_model_parallel_rank(),
            micro_batches=micro_batches,
            shapes=job.shapes,
            parameters=sum(p.numel() for p in parameters),
            trained=sum(p.numel() for p in trained_parameters(model)),
            weights=size(parameters),
            gradients=size(buffer.grad_data for chunk in optimization.wrapped for buffer in cast("Any", chunk).buffers),
            optimizer=optimizer_bytes(optimization, parameters),
            teacher=size([*teacher.weights, *(a for a in teacher.average if a not in set(teacher.weights))]),
            activations=kept.peak,
            traffic=counter.traffic(),
        )


def stand_in(config: TrainConfig) -> TrainConfig:
    """The same run with layers that can be built anywhere: torch's, of the same weights, left as they are allocated."""
    layers, megatron = replace(config.model, attention="sdpa"), {**config.megatron, "perform_initialization": False}
    return replace(config, model=layers, precision=PrecisionConfig(), megatron=megatron)


def _walk(
    model: HiddenStateGPT,
    optimization: Optimization,
    teacher: Teacher,
    config: TrainConfig,
    batches: Sequence[MicroBatch],
    counter: TrafficCounter,
    kept: KeptForBackward,
) -> None:
    """An update: teacher, twice for a target that is a mix, student with loss, optimizer."""
    target = divergence_of(config).target
    with counter.during("teacher"), torch.no_grad(), teacher.applied():
        passes = range(1 if target.kind == "teacher" else 2)
        readings = [run_schedule(model, batches, _teacher_stage, forward_only=True)[:1] for _ in passes]
    hidden = [torch.stack(both) for both in zip(*readings, strict=True)] if target.readings == 2 else readings[0]
    with counter.during("student"), kept:
        optimization.zero_grad()
        run_schedule(optimization.wrapped, batches, _student_stage(model, teacher, config, hidden), forward_only=False)
    with counter.during("optimizer"):
        optimization.optimizer.prepare_grads()
        optimization.optimizer.step_with_ready_grads()
        optimization.start_gather()
        optimization.weights_ready()
        teacher.update()


def _batch(shapes: Shapes) -> MicroBatch:
    count, length = shapes.sequences, shapes.length
    ids_BS = torch.empty(*((1, count * length) if shapes.packed else (count, length)), dtype=torch.long, device=META)
    tokens = torch.empty(count * -(-shapes.response // shapes.context), dtype=torch.long, device=META)
    bounds = tuple(range(0, (count + 1) * length, length)) if shapes.packed else None
    return MicroBatch(tuple(range(count)), ids_BS, tokens, tokens, tokens, tokens, tokens[:count], bounds)


def _teacher_stage(batch: MicroBatch, hidden_BSH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    hidden_TH = batch.response_hidden(hidden_BSH)
    return hidden_TH.sum(), torch.ones((), dtype=torch.int), hidden_TH


def _student_stage(model: HiddenStateGPT, teacher: Teacher, config: TrainConfig, teacher_hidden: Sequence[Tensor]) -> LastStage:
    """As distill.step's, without the statistics, whose count of tokens is a value; the divergence sees the same shapes."""
    divergence, shard = replace(divergence_of(config), compile=False), vocabulary_shard(model)

    def last_stage(batch: MicroBatch, hidden_BSH: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden_TH = batch.response_hidden(hidden_BSH)
        ones_T = torch.ones(len(hidden_TH), device=META)
        head_VH, teacher_VH, count = model.head_weight(), teacher.head_weight(), torch.tensor(len(hidden_TH), dtype=torch.int)
        loss, _ = distill_loss(hidden_TH, head_VH, teacher_hidden[0], teacher_VH, ones_T, divergence, shard.valid, shard.group)
        return loss, count, None

    return last_stage


def _fused_attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None, **_: Any) -> Tensor:
    """The kernel that a device would choose: for meta tensors torch chooses the one that forms the matrix of scores."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, is_causal=True, scale=scale)[0]


@contextmanager
def fake_groups(config: TrainConfig, world: int, rank: int) -> Iterator[None]:
    """megatron.core's process groups as `rank` of `world` ranks sees them; nobody is at the other end."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    os.environ["WORLD_SIZE"] = str(world)
    dist.Backend.backend_capability["fake"] = ["cpu", "cuda", "meta"]
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        with session_of(config.parallel):
            yield
    finally:
        dist.destroy_process_group()


def group_names() -> dict[str, str]:
    """megatron.core's groups by the name that torch gave them."""
    groups: dict[str, Any] = {
        "world": dist.group.WORLD,
        "pipeline": parallel_state.get_pipeline_model_parallel_group(),
        "embedding": parallel_state.get_embedding_group(check_initialized=False),
        "data": parallel_state.get_data_parallel_group(with_context_parallel=True),
        "tensor": parallel_state.get_tensor_model_parallel_group(),
        "context": parallel_state.get_context_parallel_group(),
    }
    return {group.group_name: name for name, group in groups.items() if isinstance(group, dist.ProcessGroup)}


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors, each storage once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def optimizer_bytes(optimization: Optimization, parameters: Iterable[Tensor]) -> int:
    """Master weights and moments after a step, without the model's own weights."""
    own = {p.untyped_storage()._cdata for p in parameters}  # of fp32 weights the distributed optimizer has views
    adams = [part.optimizer for part in cast("Any", optimization.optimizer).chained_optimizers]
    masters = [p for adam in adams for group in adam.param_groups for p in group["params"] if p.untyped_storage()._cdata not in own]
    moments = [v for adam in adams for state in adam.state.values() for v in state.values() if isinstance(v, Tensor)]
    return size([*masters, *moments])
