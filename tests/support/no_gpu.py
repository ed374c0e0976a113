"""Transformer Engine's real model on a machine without a GPU: its modules are built, with their parameters; forward passes need the GPU.

Every function runs in a process of its own (`in_a_process`), because the stand-ins for CUDA stay until it ends.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import apply_factories
from megatron.core.fp8_utils import get_fp8_recipe

from megatron_atesd.checkpoint.model_folder import load_model_weights
from megatron_atesd.config import Precision, PrecisionConfig, TrainConfig
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.gpt import HiddenStateGPT, build_model
from megatron_atesd.model.megatron_config import megatron_settings, transformer_config
from megatron_atesd.model.scaling_history import load_scaling_history, scaling_history
from megatron_atesd.parallel import cpu_backend
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.plan.dry_run import fake_groups

CPU, META = torch.device("cpu"), torch.device("meta")


@dataclass(frozen=True)
class Built:
    """Of one rank: parameters with their shapes, stored tensors with their whole shapes, and the recipe that megatron.core makes."""

    parameters: dict[str, tuple[int, ...]]
    stored: dict[str, tuple[int, ...]]
    layers: set[str]
    recipe: str


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns in a new process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


@contextmanager
def answering_as_a_gpu() -> Iterator[None]:
    """Questions about the GPU get the answers of an H100; to be entered once the process groups exist, which need none."""
    answers = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: SimpleNamespace(
            major=9, minor=0, name="H100", total_memory=80 * 2**30, multi_processor_count=132
        ),
    }
    with patch.multiple(torch.cuda, **answers):
        yield


def build(config: TrainConfig, arch: Architecture, world: int, rank: int, precisions: Sequence[Precision | None]) -> list[Built]:
    """The model of one rank in each of the precisions, on the meta device."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    cpu_backend.install(META)
    with fake_groups(config, world, rank), answering_as_a_gpu():
        return [_build(config, arch, precision) for precision in precisions]


def _build(config: TrainConfig, arch: Architecture, precision: Precision | None) -> Built:
    layers, megatron = replace(config.model, attention="te"), {**config.megatron, "perform_initialization": False}
    config = replace(config, model=layers, precision=PrecisionConfig(precision), megatron=megatron)
    model = build_model(arch, megatron_settings(config, arch))
    state = model.sharded_state_dict()
    apply_factories(state)
    return Built(
        parameters={name: tuple(parameter.shape) for name, parameter in model.named_parameters()},
        stored={part.key: tuple(part.global_shape) for part in nested_values(state)},
        layers={type(module).__name__ for module in model.modules()},
        recipe=type(get_fp8_recipe(model.config)).__name__ if model.config.fp8 else "",
    )


def load(folder: Path, arch: Architecture, precision: Precision | None) -> dict[str, Any]:
    """A whole Transformer Engine model on the CPU with the weights of the model folder `folder`; its parameters by name, as lists."""
    with small_model(arch, precision) as model:
        load_model_weights(model, folder)
        return {name: parameter.detach().float().tolist() for name, parameter in model.named_parameters()}


def history_there_and_back(arch: Architecture) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the delayed recipe remembers, as one model gives it and as another that has taken it over gives it; tensors as lists."""
    with small_model(arch, "fp8_delayed") as model, small_model(arch, "fp8_delayed", inside=True) as other:
        recipe = get_fp8_recipe(model.config)
        layers: list[Any] = [m for m in model.modules() if type(m).__name__.startswith("TE") and hasattr(m, "fp8_meta")]
        for number, module in enumerate(layers):
            module.fp8_meta["num_gemms"] = 1
            module.init_fp8_meta_tensors(recipe)
            module.fp8_meta["scaling_fwd"].amax_history.fill_(number + 0.5)
            module.fp8_meta["scaling_bwd"].scale.fill_(number + 0.25)
        saved = scaling_history(model)
        load_scaling_history(other, saved)
        return lists(saved), lists(scaling_history(other))


def lists(history: dict[str, dict[str, torch.Tensor]]) -> dict[str, Any]:
    return {name: {key: tensor.tolist() for key, tensor in tensors.items()} for name, tensors in history.items()}


@contextmanager
def small_model(arch: Architecture, precision: Precision | None, inside: bool = False) -> Iterator[HiddenStateGPT]:
    """A whole model on the CPU; `inside`: of process groups that exist."""
    if inside:
        yield build_model(arch, transformer_config(arch, 1, 1, False, "bf16", transformer_engine=True, precision=precision))
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    cpu_backend.install(CPU)
    with parallel_session(), answering_as_a_gpu():
        yield build_model(arch, transformer_config(arch, 1, 1, False, "bf16", transformer_engine=True, precision=precision))
