"""A LoRA adapter as peft saves it: adapter_config.json beside adapter_model.safetensors, held to the model that it is for."""

from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_atesd.checkpoint.adapter_tensors import adapter_shapes
from megatron_atesd.checkpoint.hf_tensors import FLOATS, INDEX, SINGLE, SourceTensor
from megatron_atesd.checkpoint.peft_config import CONFIG, INSTEAD, read_peft_config
from megatron_atesd.errors import ConfigError, ConversionError
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.lora import Adapter, LoraSettings, adapter_parameters

WEIGHTS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
PEFT_PREFIX = "base_model.model."  # stands before our names of tensors in the file


def is_peft_folder(folder: Path) -> bool:
    """Whether this is an adapter: its config is here, and the weights of a model are not."""
    return (folder / CONFIG).is_file() and not any((folder / name).is_file() for name in (SINGLE, INDEX))


class PeftFolder:
    """A PEFT folder for a model of `arch`. Names, shapes and types of its tensors are checked, their values are read when asked for.

    settings: its dtype is that of the tensors; where they have several, the one that holds them all.
    base: what the folder says of its base model. tensors, shapes: by our names, PEFT's without base_model.model.
    Raises ConversionError naming the file, and the first value or tensor that adapters here cannot have.
    """

    def __init__(self, folder: Path, arch: Architecture) -> None:
        self.folder, config = folder, read_peft_config(folder)
        self.base, self.shapes = config.base, adapter_shapes(arch, config.settings)
        self.tensors = _tensors(folder / WEIGHTS)
        self._check()
        types = [FLOATS[tensor.dtype] for tensor in self.tensors.values()]
        self.settings = replace(config.settings, dtype=reduce(torch.promote_types, types))

    def read(self, name: str) -> Tensor:
        """One factor, whole, as stored. Raises ConversionError for NaN or infinite values."""
        return self.tensors[name][:]

    def check_settings(self, settings: LoraSettings) -> None:
        """Raise ConfigError unless these settings of a run are the adapter's. Dropout and type may differ: they say how it goes on."""
        pairs: dict[str, tuple[Any, Any]] = {
            "rank": (settings.rank, self.settings.rank),
            "alpha": (settings.alpha, self.settings.alpha),
            "targets": (sorted(settings.targets), sorted(self.settings.targets)),
            "rslora": (settings.rslora, self.settings.rslora),
        }
        for name, (mine, theirs) in pairs.items():
            if mine != theirs:
                raise ConfigError(f"lora.{name} is {mine}, but the adapter in {self.folder} has {theirs}; set lora.{name} to that")

    def _check(self) -> None:
        file = self.folder / WEIGHTS
        for name in self.shapes:
            if name not in self.tensors:
                raise ConversionError(f"{file}: tensor {PEFT_PREFIX}{name} is missing; {CONFIG} promises it, get the adapter again")
        for name, tensor in self.tensors.items():
            where = f"{file}: {tensor.name}"
            if name not in self.shapes:
                raise ConversionError(f"{where} is no LoRA factor of a target_modules of {CONFIG} in this base; {INSTEAD}")
            if tensor.shape != self.shapes[name]:
                raise ConversionError(
                    f"{where} has shape {tensor.shape}, r of {CONFIG} and the base's config.json ask for {self.shapes[name]}; "
                    "give the base that the adapter was trained on, or get the adapter again"
                )
            if tensor.dtype not in FLOATS:
                raise ConversionError(f"{where} is stored as {tensor.dtype}; give weights in fp32, bf16 or fp16, not quantised ones")


def _tensors(file: Path) -> dict[str, SourceTensor]:
    """Those of the file without PEFT's prefix; one that lacks it keeps its name, as that of no adapter."""
    if not file.is_file():
        if (file.parent / PICKLED).is_file():
            raise ConversionError(
                f"{file.parent / PICKLED}: these weights are pickled, which may run foreign code; load the adapter once with peft and "
                "save_pretrained() it, which writes safetensors"
            )
        raise ConversionError(f"{file}: missing, although {CONFIG} is here; get the adapter again")
    try:
        handle: Any = safe_open(file, framework="pt")
        found = {name: SourceTensor(name, file, handle) for name in handle.keys()}  # noqa: SIM118 - a safetensors handle is no mapping
    except (SafetensorError, OSError) as error:
        raise ConversionError(f"{file}: damaged or incomplete ({error}); get the adapter again") from error
    return {name.removeprefix(PEFT_PREFIX) if name.startswith(PEFT_PREFIX) else f"/{name}": tensor for name, tensor in found.items()}


@torch.no_grad()
def load_peft(model: HiddenStateGPT, folder: Path) -> None:
    """Fill this rank's adapters from a PEFT folder, in their own dtype, at any TP × PP; each rank reads only its slices.

    Raises ConversionError for a folder that cannot be read, ConfigError unless the model's adapters are of the same settings.
    """
    source = PeftFolder(folder, model.arch)
    source.check_settings(next(module.settings for module in model.modules() if isinstance(module, Adapter)))
    for name, parameter in adapter_parameters(model).items():
        parameter.copy_(_part(source.tensors[name], parameter))


def _part(tensor: SourceTensor, parameter: Any) -> Tensor:
    if not parameter.tensor_model_parallel:
        return tensor[:]
    width = parameter.shape[parameter.partition_dim]
    start = parallel_state.get_tensor_model_parallel_rank() * width
    return tensor[:, start : start + width] if parameter.partition_dim else tensor[start : start + width]
