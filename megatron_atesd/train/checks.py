"""What can be refused before the heavy work, and what a resumed run may not change."""

import os
import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_atesd.checkpoint.model_folder import find_hf
from megatron_atesd.config import ModelShape, TrainConfig, fp8_recipe, validate
from megatron_atesd.data.problems import check_disjoint, load_problems
from megatron_atesd.data.prompts import PromptRenderer
from megatron_atesd.data.tokenizer import load_tokenizer, model_stop_ids
from megatron_atesd.doctor.examine import examine_machine
from megatron_atesd.doctor.finding import refuse_errors
from megatron_atesd.errors import CheckpointError, ConfigError
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.megatron_config import DTYPES, megatron_settings
from megatron_atesd.model.supported import check_context, check_fp8
from megatron_atesd.output_folder import check_writable
from megatron_atesd.records import Problem
from megatron_atesd.train.optimizer import optimizer_settings


def check_before_work(config: TrainConfig, world_size: int) -> tuple[list[Problem], list[Problem]]:
    """Training and probe problems, once every rule holds that can be checked without weights or process groups."""
    validate(config, world_size, None)
    hf = find_hf(Path(config.model.path))
    architecture = read_architecture(hf)
    shape = ModelShape(architecture.heads, architecture.query_groups, architecture.layers, architecture.ffn, architecture.max_positions)
    validate(config, world_size, shape)
    megatron_settings(config, architecture)
    check_fp8(config, architecture)
    check_context(config)
    optimizer_settings(DTYPES[config.model.dtype], config.optimizer, config.ddp, config.schedule)
    check_compiler(config.distill.compile)
    # Refuses what cannot make prompts.
    PromptRenderer(load_tokenizer(hf, architecture.vocabulary), config.prompt, model_stops=model_stop_ids(hf))
    data = load_data(config)
    if os.environ.get("RANK", "0") == "0":
        check_writable("run.dir", Path(config.run.dir) / "checkpoints")
    refuse_errors(examine_machine(config))
    return data


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
    return train, probe[: config.data.probe_size or None]


def check_prompts(renderer: PromptRenderer, problems: Sequence[Problem]) -> None:
    """Raise DataError now for a problem whose longest prompt (full exposure) is too long, not amid the run; ranks share the work."""
    for problem in problems[dist.get_rank() :: dist.get_world_size()]:
        renderer.teacher(problem, 1.0)


def _as_computed(precision: Mapping[str, Any]) -> dict[str, Any]:
    """Section precision with what is computed alike spelled alike, also of a run from before there was one."""
    return {role: value for role, value in precision.items() if fp8_recipe(value)}


def check_unchanged(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise CheckpointError for a setting that a resumed run cannot change: the run would no longer be one experiment.

    Layout, memory, checkpoint and monitor settings may change; run.updates too, while the learning rate does not depend on it.
    """
    free = {("rollout", "batch"), ("distill", "chunk"), ("distill", "compile"), ("distill", "teacher_offload")}
    sections = ("precision", "schedule", "optimizer", "distill", "exposure", "rollout", "prompt")
    old, new = ({**config, "precision": _as_computed(config.get("precision", {}))} for config in (old, new))
    names = {(section, key) for section in sections for key in {*old[section], *new[section]}} - free
    names |= set() if new["schedule"]["decay"] == "constant" else {("run", "updates")}
    for section, key in sorted(names):
        was, now = old[section].get(key), new[section].get(key)
        if was != now:
            raise CheckpointError(f"{section}.{key} is {now}, but the run began with {was}: set it back, or choose another run.dir")
