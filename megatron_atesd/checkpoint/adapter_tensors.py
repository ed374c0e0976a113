"""The tensors of adapters by PEFT's names, whole: which there must be, those of a checkpoint, and what they add to a weight."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from megatron_atesd.checkpoint.hf_tensors import check_finite
from megatron_atesd.checkpoint.name_table import name_table
from megatron_atesd.checkpoint.torch_dist import StoredTensors
from megatron_atesd.errors import CheckpointError
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.lora import LoraSettings


class Adapters(Protocol):
    """Adapters whose names and shapes are known to be those of `adapter_shapes`; their values are read one tensor at a time."""

    settings: LoraSettings
    shapes: dict[str, tuple[int, int]]

    def read(self, name: str) -> Tensor:
        """One factor, whole, as stored."""
        ...


def adapter_shapes(arch: Architecture, settings: LoraSettings) -> dict[str, tuple[int, int]]:
    """Every tensor of adapters on such a model: lora_A [rank, inputs] and lora_B [outputs, rank] of each target projection."""
    sources = ((name, shape) for entry in name_table(arch) for name, shape in entry.sources.items())
    shapes = {}
    for name, shape in sources:
        projection = name.removesuffix(".weight")
        if projection.rpartition(".")[2] in settings.targets:
            outputs, inputs = shape
            shapes |= {f"{projection}.lora_A.weight": (settings.rank, inputs), f"{projection}.lora_B.weight": (outputs, settings.rank)}
    return shapes


class StoredAdapters:
    """Adapters in a checkpoint, under `prefix`. Raises CheckpointError naming the first tensor that does not fit."""

    def __init__(self, checkpoint: Path, prefix: str, settings: LoraSettings, arch: Architecture) -> None:
        self.settings, self.shapes = settings, adapter_shapes(arch, settings)
        self._stored = StoredTensors(checkpoint / "weights", prefix)
        found = self._stored.shapes()
        for name in sorted(self.shapes.keys() | found.keys()):
            self._check(checkpoint, prefix + name, found.get(name), self.shapes.get(name))

    @staticmethod
    def _check(checkpoint: Path, name: str, found: tuple[int, ...] | None, expected: tuple[int, int] | None) -> None:
        if found is None:
            raise CheckpointError(f"{checkpoint}: {name} is missing; its LoRA settings promise it, use another checkpoint")
        if expected is None:
            raise CheckpointError(f"{checkpoint}: {name} is no factor that its LoRA settings name; use another checkpoint")
        if found != expected:
            asked = f"config.json and its LoRA settings ask for {expected}"
            raise CheckpointError(f"{checkpoint}: {name} has shape {found}, {asked}; use another checkpoint")

    def dtypes(self) -> set[torch.dtype]:
        return self._stored.dtypes()

    def read(self, name: str) -> Tensor:
        """Raises ConversionError for NaN or infinite values, CheckpointError for a tensor that cannot be read."""
        values = self._stored.read(name, (0, 0), self.shapes[name])
        check_finite(values, f"{self._stored.folder}: {self._stored.prefix}{name}")
        return values


def product(a: Tensor, b: Tensor, settings: LoraSettings) -> Tensor:
    """s·B·A in fp32: what adapters add to the projection's weight [outputs, inputs]. a: [rank, inputs]. b: [outputs, rank]."""
    return b.float() @ a.float() * settings.scaling
