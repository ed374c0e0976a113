"""What a measurement of the mismatch starts from, and what it refuses before any process group or model exists."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_atesd.checkpoint.model_folder import find_model_folder
from megatron_atesd.checkpoint.model_inputs import ModelInputs, read_model
from megatron_atesd.config import DataConfig, ExposureConfig, RunConfig, TrainConfig, refuse, validate
from megatron_atesd.data.problems import load_problems
from megatron_atesd.data.teacher_view import TeacherView
from megatron_atesd.errors import ConfigError, DataError
from megatron_atesd.model.megatron_config import megatron_settings
from megatron_atesd.model.micro_batches import TokenIds
from megatron_atesd.model.supported import check_context, check_fp8
from megatron_atesd.output_folder import make_writable
from megatron_atesd.records import Problem, TeacherContext
from megatron_atesd.rollout.vllm_check import check_vllm
from megatron_atesd.train.checks import check_cache, check_compiler
from megatron_atesd.train.mismatch_flags import DECIDED

FILES = ("mismatch.json", "mismatch.png")


@dataclass(frozen=True)
class Measurement:
    """What to measure: `samples` responses to each of the first `problems` problems (0 = all), at the exposures `alphas`, rising.

    settings: of a training, whose student answers and whose teacher judges.
    """

    model: Path
    data: Path
    out: Path
    alphas: Sequence[float]
    problems: int
    samples: int
    seed: int
    settings: TrainConfig


@dataclass(frozen=True)
class MeasurementInputs:
    """The checked parts. config: the settings that count, all others at their defaults.

    contexts: what the teacher sees of each problem at each exposure. grounding: the ids after each teacher's prompt, [] where it is off.
    """

    config: TrainConfig
    model: ModelInputs
    megatron: TransformerConfig
    problems: Sequence[Problem]
    contexts: Sequence[Sequence[TeacherContext]]
    grounding: Sequence[TokenIds]


def read_inputs(task: Measurement, world_size: int) -> MeasurementInputs:
    """Everything that needs neither weights nor process groups; makes the folder `task.out`, as the last step.

    Raises ConfigError, DataError, CheckpointError or ConversionError for whatever `world_size` processes cannot measure.
    """
    _check_flags(task)
    there = load_problems(task.data, task.settings.data.on_error)
    config = _settings_that_count(task, world_size)
    _check_settings(config, world_size)
    folder = task.model if (task.model / "config.json").is_file() else find_model_folder(task.model)
    model = read_model(folder, config.prompt, config.exposure.reveal)
    validate(config, world_size, model.architecture.shape)
    megatron = megatron_settings(config, model.architecture)
    check_fp8(config, model.architecture)
    check_context(config)
    check_compiler(config.distill.compile)
    check_vllm(config, model.architecture)
    check_cache(config, model.architecture, megatron)
    problems = there[: task.problems or None]
    view = TeacherView(model.renderer, config.exposure, task.seed, there)
    contexts = [[view.context(problem, alpha) for alpha in task.alphas] for problem in problems]
    _check_references(task, problems, contexts)
    grounding = _grounding(model, problems, contexts, config)
    _check_out(task, folder)
    return MeasurementInputs(config, model, megatron, problems, contexts, grounding)


def _check_flags(task: Measurement) -> None:
    least = {"--problems": (task.problems, 0, "0 (all) or more"), "--samples": (task.samples, 1, "1 or more")}
    refuse([f"{flag} is {value}, must be {rule}" for flag, (value, low, rule) in least.items() if value < low])
    if task.problems == 1:
        raise ConfigError("--problems is 1: standard errors are over problems; give 2 or more, or 0 for all")
    if not task.model.is_dir():
        raise ConfigError(f"--model is {task.model}, which is no folder; give a Megatron or Hugging Face model folder, or a run directory")


def _settings_that_count(task: Measurement, world_size: int) -> TrainConfig:
    s, e, data = task.settings, task.settings.exposure, str(task.data)
    return TrainConfig(
        run=RunConfig(dir=str(task.out), seed=task.seed, updates=s.run.updates),
        model=replace(s.model, path=str(task.model)),
        precision=s.precision,
        parallel=s.parallel,
        data=DataConfig(train=data, probe=data, batch=world_size),
        prompt=s.prompt,
        rollout=s.rollout,
        engine=s.engine,
        distill=replace(s.distill, target="teacher"),
        # As often as can be: what a training asks of distill.refresh_every does not count here.
        exposure=ExposureConfig(mode="fixed", reference=e.reference, reveal=e.reveal, grounding=e.grounding, probe_every=1),
        megatron=s.megatron,
    )


def _check_settings(config: TrainConfig, world_size: int) -> None:
    """The rules of a training, under the names of the flags, and those of this measurement."""
    if config.exposure.reference == "none":
        raise ConfigError("exposure.reference is none, so the teacher sees the same at every α of --alphas; set it to own or shuffled")
    if config.exposure.grounding == "own":
        raise ConfigError("exposure.grounding is own, the correct responses of a training's start model; set it to solution, answer or off")
    for name in ("student", "teacher", "rollout"):
        if getattr(config.precision, name) == "fp8_delayed":
            raise ConfigError(
                f"precision.{name} is fp8_delayed, whose scales come from a run's passes with gradients, of which there are none here; "
                "set it to bf16 or fp8_tensorwise"
            )
    try:
        validate(config, world_size)
    except ConfigError as error:
        raise ConfigError(re.sub(r"\b\w+\.\w+\b", lambda name: DECIDED.get(name[0], name[0]), str(error))) from None


def _check_references(task: Measurement, problems: Sequence[Problem], contexts: Sequence[Sequence[TeacherContext]]) -> None:
    if len(problems) < 2:
        raise DataError(f"{task.data} has one problem: standard errors are over problems; give a file with 2 or more")
    if empty := [p.id for p, seen in zip(problems, contexts, strict=True) if not seen[0].segments]:
        raise DataError(
            f"{task.data}: {len(empty)} of {len(problems)} problems have no solution beside the boxed answer (the first: {empty[0]!r}), so "
            "that no α reveals anything; give problems with worked solutions"
        )


def _grounding(
    model: ModelInputs, problems: Sequence[Problem], contexts: Sequence[Sequence[TeacherContext]], config: TrainConfig
) -> list[TokenIds]:
    """Raises DataError for a text that exceeds the model's positions after its longest prompt."""
    if config.exposure.grounding == "off":
        return []
    texts = [model.renderer.reference(p) if config.exposure.grounding == "solution" else model.renderer.answer(p) for p in problems]
    for problem, seen, text in zip(problems, contexts, texts, strict=True):
        longest = max(len(context.prompt_ids) for context in seen) + len(text)
        if longest > model.architecture.max_positions:
            raise DataError(
                f"problem {problem.id!r}: its longest teacher prompt and the text of exposure.grounding are {longest} tokens, must not "
                f"exceed the model's {model.architecture.max_positions} positions: set exposure.grounding to off, or leave the problem out"
            )
    return [tuple(text) for text in texts]


def _check_out(task: Measurement, folder: Path) -> None:
    out = Path(os.path.realpath(task.out))
    if Path(os.path.realpath(folder)) in (out, *out.parents):
        raise ConfigError(f"--out is {task.out}, inside the model's folder {folder}, whose files must stay as they are; choose another")
    if there := [name for name in FILES if os.path.lexists(task.out / name)]:
        raise ConfigError(f"--out {task.out} has a {there[0]} already; give another --out, or remove it")
    make_writable("--out", task.out)
