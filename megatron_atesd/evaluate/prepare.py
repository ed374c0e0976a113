"""What an evaluation needs before any process group or model exists, and what it refuses by then."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_atesd.checkpoint.base_model import adapter_record, base_folders
from megatron_atesd.checkpoint.model_folder import find_model_folder
from megatron_atesd.checkpoint.model_inputs import ModelInputs, read_model
from megatron_atesd.config import (
    PrecisionConfig,
    TrainConfig,
    layout_problems,
    precision_problems,
    refuse,
    rollout_problems,
    section_problems,
)
from megatron_atesd.config.bounds import SEED
from megatron_atesd.data.problems import load_problems
from megatron_atesd.errors import ConfigError
from megatron_atesd.evaluate.flags import FLAGS
from megatron_atesd.evaluate.same_settings import Decisive, check_same, decisive_settings
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.megatron_config import megatron_settings
from megatron_atesd.model.micro_batches import TokenIds
from megatron_atesd.model.supported import check_fp8
from megatron_atesd.output_folder import make_writable
from megatron_atesd.records import Problem
from megatron_atesd.rollout.cache_room import cache_tokens
from megatron_atesd.rollout.vllm_check import check_vllm


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate. `settings` gives prompt, sampling, parallel layout, dtype and precision.rollout; its exposure plays no part.

    protocol: name of the one that the result says it follows, see `protocol.PROTOCOLS`; it decides no response.
    """

    model: Path
    data: Path
    out: Path
    samples: int
    seed: int
    grading_workers: int
    grading_seconds: float
    settings: TrainConfig
    protocol: str | None = None


@dataclass(frozen=True)
class Prepared:
    """The checked parts of an evaluation. prompts: the student's, one a problem. decisive: what decides the responses."""

    model: ModelInputs
    megatron: TransformerConfig
    problems: Sequence[Problem]
    prompts: Sequence[TokenIds]
    decisive: Decisive


def prepare(task: Evaluation, world_size: int) -> Prepared:
    """Everything that needs neither weights nor process groups; makes the folder `task.out`, as the last step.

    Raises ConfigError, DataError, CheckpointError or ConversionError for whatever cannot be evaluated by `world_size` processes.
    """
    check_numbers(task, world_size)
    settings, parallel = task.settings, task.settings.parallel
    folder = task.model if (task.model / "config.json").is_file() else find_model_folder(task.model)
    if (folder / "weights").is_dir() and (record := adapter_record(folder)) is not None:
        base_folders(record, folder, settings.model.path)
    model = read_model(folder, settings.prompt, settings.exposure.reveal)
    architecture = model.architecture
    refuse(layout_problems(parallel, world_size, architecture.shape))
    check_precision(settings, architecture)
    alike = PrecisionConfig(student=settings.precision.rollout, rollout=settings.precision.rollout)
    megatron = megatron_settings(replace(settings, parallel=replace(parallel, sequence=False), precision=alike), architecture)
    problems = load_problems(task.data, settings.data.on_error)
    prompts = [model.renderer.student(problem) for problem in problems]
    check_vllm(settings, architecture)
    check_room(problems, prompts, settings.rollout.max_new_tokens, architecture.max_positions)
    check_cache(settings, architecture, megatron, max(map(len, prompts)))
    out = Path(os.path.realpath(task.out))  # resolve() raises for a link round in a circle
    if Path(os.path.realpath(folder)) in (out, *out.parents):
        raise ConfigError(f"--out is {task.out}, inside the model's folder {folder}, whose files must stay as they are; choose another")
    decisive = decisive_settings(settings, folder, problems, task.samples, task.seed)
    check_same(task.out, decisive)
    make_writable("--out", task.out)
    return Prepared(model, megatron, problems, prompts, decisive)


def check_numbers(task: Evaluation, world_size: int) -> None:
    """Raise one ConfigError that lists every number out of its bounds and every rule of sampling broken, under the names of flags."""
    problems = [f"--samples is {task.samples}, must be 1 or more"] if task.samples < 1 else []
    seeds, is_seed = SEED
    problems += [] if is_seed(task.seed) else [f"--seed is {task.seed}, must be {seeds}"]
    wrong = section_problems(task.settings, ("rollout", "engine", "parallel", "prompt")) or list(rollout_problems(task.settings.rollout))
    problems += [re.sub(r"rollout\.\w+", lambda name: FLAGS[name[0]], problem) for problem in wrong]
    refuse(problems)
    refuse(layout_problems(task.settings.parallel, world_size))


def check_precision(settings: TrainConfig, architecture: Architecture) -> None:
    """Raise ConfigError for a precision.rollout that cannot be computed here, or that needs what only a training run remembers."""
    if settings.precision.rollout == "fp8_delayed":
        raise ConfigError(
            "precision.rollout is fp8_delayed, whose scales come from a run's passes with gradients, of which an evaluation has none; "
            "set it to bf16 or fp8_tensorwise"
        )
    alone = replace(settings, precision=PrecisionConfig(rollout=settings.precision.rollout))
    refuse(list(precision_problems(alone)))
    check_fp8(alone, architecture)


def check_room(problems: Sequence[Problem], prompts: Sequence[TokenIds], max_new_tokens: int, max_positions: int) -> None:
    """Raise ConfigError when the longest prompt and a whole response exceed the model's positions."""
    length, longest = max((len(prompt), problem.id) for prompt, problem in zip(prompts, problems, strict=True))
    room = max_positions - length
    if max_new_tokens > room:
        remedy = f"give {room} or less" if room > 0 else "leave the problem out, or evaluate a model with more positions"
        raise ConfigError(
            f"--max-new-tokens {max_new_tokens} plus the {length} tokens of the longest student prompt (problem {longest!r}) is "
            f"{max_new_tokens + length}, must not exceed the model's {max_positions} positions; {remedy}"
        )


def check_cache(settings: TrainConfig, architecture: Architecture, megatron: TransformerConfig, prompt: int) -> None:
    """Raise ConfigError when engine.cache_gib of the training engine does not hold the longest prompt (`prompt` tokens) and response."""
    if settings.engine.name != "training":
        return
    response = settings.rollout.max_new_tokens
    what = f"the {prompt} tokens of the longest student prompt and --max-new-tokens {response}"
    cache_tokens(settings.engine, architecture, megatron, prompt + response, what)
