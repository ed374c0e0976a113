"""What can be refused before the heavy work, and what a run starts from once it has passed."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_atesd.checkpoint.base_model import adapter_record
from megatron_atesd.checkpoint.model_inputs import ModelInputs, read_model
from megatron_atesd.checkpoint.peft_folder import PeftFolder
from megatron_atesd.config import TrainConfig, validate
from megatron_atesd.data.problems import check_disjoint, load_problems
from megatron_atesd.doctor.examine import examine_machine
from megatron_atesd.doctor.finding import refuse_errors
from megatron_atesd.errors import ConfigError
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.megatron_config import DTYPES, megatron_settings
from megatron_atesd.model.supported import check_context, check_fp8
from megatron_atesd.model.trained import lora_settings
from megatron_atesd.output_folder import check_writable
from megatron_atesd.records import Problem
from megatron_atesd.rollout.cache_room import cache_tokens
from megatron_atesd.rollout.vllm_check import check_vllm
from megatron_atesd.train.difficulty import field_values
from megatron_atesd.train.evaluation_files import EvaluationFile, read_files, with_room
from megatron_atesd.train.optimizer import optimizer_settings


@dataclass(frozen=True)
class TrainingInputs:
    """What a run's settings name, read and checked."""

    model: ModelInputs
    megatron: TransformerConfig
    problems: Sequence[Problem]
    probe_problems: Sequence[Problem]
    evaluation_files: Sequence[EvaluationFile] = ()


def check_before_work(config: TrainConfig, world_size: int) -> TrainingInputs:
    """What the run starts from, once every rule holds that can be checked without weights or process groups."""
    validate(config, world_size, None)
    check_whole(Path(config.model.path))
    model = read_model(Path(config.model.path), config.prompt, config.exposure.reveal)
    architecture = model.architecture
    validate(config, world_size, architecture.shape)
    if config.lora.start:
        PeftFolder(Path(config.lora.start), architecture).check_settings(lora_settings(config.lora, config.model.dtype))
    megatron = megatron_settings(config, architecture)
    check_fp8(config, architecture)
    check_context(config)
    learns = lora_settings(config.lora, config.model.dtype).dtype if config.lora.rank else DTYPES[config.model.dtype]
    optimizer_settings(learns, config.optimizer, config.ddp, config.schedule)
    check_compiler(config.distill.compile)
    problems, probe_problems = load_data(config)
    evaluation_files = read_files(config, model, megatron, problems, probe_problems)
    check_vllm(with_room(config), architecture)
    check_cache(config, architecture, megatron)
    if os.environ.get("RANK", "0") == "0":
        check_writable("run.dir", Path(config.run.dir) / "checkpoints")
    refuse_errors(examine_machine(config))
    return TrainingInputs(model, megatron, problems, probe_problems, evaluation_files)


def check_whole(folder: Path) -> None:
    """Raise ConfigError where model.path is a checkpoint of adapters, which is no base to train."""
    if (folder / "weights" / "metadata.json").is_file() and (record := adapter_record(folder)) is not None:
        raise ConfigError(
            f"model.path is {folder}, a checkpoint of adapters on {record.base.path}; give a whole model: megatron_to_hf.py --merge makes "
            "one of both"
        )


def check_cache(config: TrainConfig, architecture: Architecture, megatron: TransformerConfig) -> None:
    """Raise ConfigError where engine.cache_gib of the training engine holds no prompt and response of the longest that there may be."""
    if config.engine.name != "training":
        return
    prompt, response = config.prompt.max_length, config.rollout.max_new_tokens
    what = f"prompt.max_length {prompt} and rollout.max_new_tokens {response}"
    cache_tokens(config.engine, architecture, megatron, prompt + response, what)


def check_compiler(wanted: bool) -> None:
    """Raise ConfigError when distill.compile is asked for where torch.compile finds no compiler."""
    if not wanted:
        return
    if torch.cuda.is_available():
        if find_spec("triton") is None:
            raise ConfigError("distill.compile is true, but triton is not installed; install it or set distill.compile to false")
    elif not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        raise ConfigError("distill.compile is true, but there is no C++ compiler (g++, clang++ or $CXX); install one or set it to false")


def load_data(config: TrainConfig) -> tuple[list[Problem], list[Problem]]:
    """Training and probe problems, checked to share none."""
    train = load_problems(config.data.train, config.data.on_error)
    probe = load_problems(config.data.probe, config.data.on_error)
    check_disjoint({f"data.train {config.data.train}": train, f"data.probe {config.data.probe}": probe})
    if config.exposure.bins > 1 and config.exposure.difficulty == "field":
        field_values([*train, *probe[: config.data.probe_size or None]], config.exposure.difficulty_field)
    return train, probe[: config.data.probe_size or None]
