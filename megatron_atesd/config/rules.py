"""Rules that single settings and settings together must keep; every broken one is reported, in one message."""

import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_atesd.config.bounds import BOUNDS
from megatron_atesd.config.distill_rules import distill_problems
from megatron_atesd.config.eval_rules import eval_problems
from megatron_atesd.config.exposure_rules import exposure_problems
from megatron_atesd.config.fields import spell
from megatron_atesd.config.health_rules import health_problems
from megatron_atesd.config.lora_rules import lora_problems
from megatron_atesd.config.schema import OPTIMIZER_DEFAULTS, ExposureConfig, ParallelConfig, RolloutConfig, RunConfig, TrainConfig
from megatron_atesd.errors import ConfigError


@dataclass(frozen=True)
class ModelShape:
    """What the rules need to know of a model.

    heads, query_groups: attention and key/value heads; layers: transformer layers; ffn: feed-forward width;
    max_positions: longest sequence in tokens.
    """

    heads: int
    query_groups: int
    layers: int
    ffn: int
    max_positions: int


def validate(config: TrainConfig, world_size: int = 1, model: ModelShape | None = None) -> None:
    """Raise one ConfigError that lists every broken rule: which value, which rule, what to do.

    world_size: processes of the run. model: None leaves out the rules that need the model's shape.
    """
    problems = list(_bound_problems(config))
    if not problems:  # the rules between settings take the single values for granted
        problems = [
            *parallel_problems(config, world_size),
            *_file_problems(config),
            *lora_problems(config),
            *precision_problems(config),
            *_context_problems(config),
            *rollout_problems(config.rollout),
            *method_problems(config),
            *_schedule_problems(config),
            *_checkpoint_problems(config),
            *eval_problems(config),
            *health_problems(config),
        ]
        problems += [] if model is None else _shape_problems(config, model)
    refuse(problems)


def validate_exposure(exposure: ExposureConfig, updates: int) -> None:
    """Raise one ConfigError that lists every rule that `exposure` breaks in a run of `updates` updates, all else at its default."""
    config = TrainConfig(run=RunConfig(updates=updates), exposure=exposure)
    refuse(section_problems(config, ["run", "exposure"]) or list(method_problems(config)))


def section_problems(config: TrainConfig, sections: Collection[str]) -> list[str]:
    """The rules for single settings that these sections break, as `section.key is VALUE, must be …`."""
    return [problem for problem in _bound_problems(config) if problem.partition(".")[0] in sections]


def layout_problems(parallel: ParallelConfig, world_size: int, model: ModelShape | None = None) -> list[str]:
    """The rules that TP, PP, VP and CP break against the number of processes, and against the model's shape when it is given."""
    shape_problems = () if model is None else _division_problems(parallel, model)
    return [*_process_problems(parallel, world_size), *_virtual_problems(parallel), *shape_problems]


def refuse(problems: Sequence[str]) -> None:
    """Raise one ConfigError with all `problems`, if there are any."""
    if len(problems) == 1:
        raise ConfigError(problems[0])
    if problems:
        raise ConfigError(f"{len(problems)} settings need a change: " + "; ".join(f"({i}) {p}" for i, p in enumerate(problems, 1)))


def _bound_problems(config: TrainConfig) -> Iterator[str]:
    values: dict[str, dict[str, Any]] = asdict(config)
    for name, (rule, holds) in BOUNDS.items():
        section, key = name.split(".")
        value = values[section][key]
        if value is not None and not (abs(value) < math.inf and holds(value)):
            yield f"{name} is {value}, must be {rule}"


def parallel_problems(config: TrainConfig, world_size: int) -> Iterator[str]:
    """The rules that layout and batch break against the number of processes."""
    parallel, batch = config.parallel, config.data.batch
    model_ranks = parallel.tensor * parallel.pipeline * parallel.context
    if parallel.sequence and parallel.tensor == 1:
        yield "parallel.sequence is true with parallel.tensor 1: sequence parallelism divides work between tensor ranks; set it to false"
    yield from _virtual_problems(parallel)
    if world_size % model_ranks:
        yield from _process_problems(parallel, world_size)
        return
    replicas = world_size // model_ranks
    if batch % replicas:
        yield f"data.batch is {batch}, must be a multiple of the {replicas} data-parallel ranks; {_multiples(batch, replicas)}"


def _process_problems(parallel: ParallelConfig, world_size: int) -> Iterator[str]:
    model_ranks = parallel.tensor * parallel.pipeline * parallel.context
    if world_size % model_ranks:
        context, which = (f" times parallel.context {parallel.context}", "three") if parallel.context > 1 else ("", "two")
        yield (
            f"parallel.tensor {parallel.tensor} times parallel.pipeline {parallel.pipeline}{context} is {model_ranks}, which does not "
            f"divide the {world_size} processes; start a multiple of {model_ranks} processes or lower one of the {which}"
        )


def _virtual_problems(parallel: ParallelConfig) -> Iterator[str]:
    if parallel.virtual_pipeline > 1 and parallel.pipeline == 1:
        yield (
            f"parallel.virtual_pipeline is {parallel.virtual_pipeline} with parallel.pipeline 1: model chunks are interleaved between "
            "pipeline ranks; set it to 1, or parallel.pipeline to 2 or more"
        )


def _multiples(value: int, step: int) -> str:
    """The nearest usable sizes around `value`."""
    below = value // step * step
    return f"{below} or {below + step} would do" if below else f"{step} would do"


def _file_problems(config: TrainConfig) -> Iterator[str]:
    if not config.run.dir:
        yield "run.dir is empty; give a folder to write to"
    elif Path(config.run.dir).is_file():
        yield f"run.dir is {config.run.dir}, which is a file; give a folder to write to"
    elif blocked := [parent for parent in Path(config.run.dir).parents if parent.is_file()]:
        yield f"run.dir is {config.run.dir}, but {blocked[0]} is a file; give a folder to write to"
    if not config.model.path:
        yield "model.path is not set; give a Megatron or Hugging Face model folder"
    elif not Path(config.model.path).is_dir():
        yield f"model.path is {config.model.path}, which is no folder; give a Megatron or Hugging Face model folder"
    for name, path in (("data.train", config.data.train), ("data.probe", config.data.probe)):
        if not path:
            yield f"{name} is not set; give a problem file (JSONL with problem and solution)"
        elif not Path(path).is_file():
            yield f"{name} is {path}, which is no file; give a problem file (JSONL with problem and solution)"


def precision_problems(config: TrainConfig) -> Iterator[str]:
    """The rules that section precision breaks, by itself and against section model."""
    precisions = {name: value for name, value in asdict(config.precision).items() if value is not None}
    fp8 = {name: value for name, value in precisions.items() if value != "bf16"}
    for name, value in precisions.items():
        if config.model.dtype != "bf16":
            yield f"precision.{name} is {value}, but model.dtype is {config.model.dtype}; set it to bf16, or precision.{name} to null"
    for name, value in fp8.items():
        if config.model.attention == "sdpa":
            yield f"precision.{name} is {value}, which only Transformer Engine computes, but model.attention is sdpa; set it to te"
    if "fp8_delayed" in fp8.values() and fp8.get("student") is None:
        yield (
            f"precision.{next(name for name, value in fp8.items() if value == 'fp8_delayed')} is fp8_delayed, but precision.student is "
            f"{spell(config.precision.student)}: scales of fp8_delayed move in passes with gradients only, which are the student's; set "
            "precision.student to fp8_delayed, or take fp8_tensorwise"
        )
    elif "fp8_delayed" in fp8.values() and len(set(fp8.values())) > 1:
        # Transformer Engine's layers keep the state of one recipe: another would start the history anew.
        of_each = " and ".join(f"precision.{name} {value}" for name, value in fp8.items())
        yield f"{of_each} cannot be together: the history of fp8_delayed would be lost at each change; choose the same, or bf16"


def _context_problems(config: TrainConfig) -> Iterator[str]:
    for kind in _context_messages(config):
        if kind not in ("p2p", "all_gather", "a2a"):
            # Without the groups of a2a+p2p, which nobody makes here, attention would silently end at a rank's own tokens.
            yield f"megatron.cp_comm_type is {kind}, must be p2p, all_gather or a2a, or a list of these; remove it for p2p"


def _context_messages(config: TrainConfig) -> list[Any]:
    """How context-parallel ranks exchange keys and values with Transformer Engine, of all layers or layer by layer."""
    given = config.megatron.get("cp_comm_type")
    return given if isinstance(given, list) else [given or "p2p"]


def rollout_problems(rollout: RolloutConfig) -> Iterator[str]:
    """The rules between settings of sampling that are broken."""
    if rollout.min_new_tokens > rollout.max_new_tokens:
        yield (
            f"rollout.min_new_tokens is {rollout.min_new_tokens}, must not exceed rollout.max_new_tokens {rollout.max_new_tokens}: no "
            "response could stop; lower it"
        )
    if "" in rollout.stop:
        yield "rollout.stop has an empty text, with which every response would end at once; remove it"


def method_problems(config: TrainConfig) -> Iterator[str]:
    """The rules between settings of the loss and of the exposure that are broken."""
    yield from distill_problems(config)
    yield from exposure_problems(config)


def _schedule_problems(config: TrainConfig) -> Iterator[str]:
    schedule, updates, lr = config.schedule, config.run.updates, config.optimizer.get("lr", OPTIMIZER_DEFAULTS["lr"])
    if schedule.warmup_updates >= updates:
        yield f"schedule.warmup_updates is {schedule.warmup_updates}, must be below run.updates {updates}; lower it"
    if schedule.decay == "wsd" and not 1 <= schedule.decay_updates <= updates - schedule.warmup_updates:
        yield (
            f"schedule.decay_updates is {schedule.decay_updates} with decay wsd, must be from 1 to the "
            f"{updates - schedule.warmup_updates} updates after the warm-up"
        )
    if isinstance(lr, int | float) and schedule.min_lr > lr:
        yield f"schedule.min_lr is {schedule.min_lr}, must not exceed optimizer.lr {lr}; lower it"


def _checkpoint_problems(config: TrainConfig) -> Iterator[str]:
    resume = config.checkpoint.resume
    if resume not in ("auto", "never") and not re.fullmatch(r"step_\d+", resume):
        yield f"checkpoint.resume is {resume}, must be auto, never, or the name of a checkpoint such as step_100"


def _shape_problems(config: TrainConfig, model: ModelShape) -> Iterator[str]:
    yield from _division_problems(config.parallel, model)
    on_rank = math.gcd(model.heads, model.query_groups) // config.parallel.tensor
    if "a2a" in _context_messages(config) and on_rank % config.parallel.context:
        yield (
            f"megatron.cp_comm_type is a2a, which divides a tensor rank's attention heads and query groups over parallel.context "
            f"{config.parallel.context}; give a divisor of {on_rank}, or p2p"
        )
    longest = config.prompt.max_length + config.rollout.max_new_tokens
    if longest > model.max_positions:
        yield (
            f"prompt.max_length {config.prompt.max_length} plus rollout.max_new_tokens {config.rollout.max_new_tokens} is {longest}, "
            f"must not exceed the model's {model.max_positions} positions; lower one of the two"
        )


def _division_problems(parallel: ParallelConfig, model: ModelShape) -> Iterator[str]:
    tensor, pipeline, virtual = parallel.tensor, parallel.pipeline, parallel.virtual_pipeline
    tensor_parts = {"attention heads": model.heads, "query groups": model.query_groups, "feed-forward width": model.ffn}
    for what, size in tensor_parts.items():
        if size % tensor:
            fitting = math.gcd(*tensor_parts.values())
            yield f"parallel.tensor is {tensor}, must divide the model's {what} ({size}); give a divisor of {fitting}"
    if model.layers % pipeline:
        yield f"parallel.pipeline is {pipeline}, must divide the model's {model.layers} layers"
    elif pipeline > 1 and model.layers % (pipeline * virtual):
        yield (
            f"parallel.pipeline {pipeline} times parallel.virtual_pipeline {virtual} is {pipeline * virtual}, must divide the model's "
            f"{model.layers} layers; give a virtual_pipeline that divides {model.layers // pipeline}"
        )
