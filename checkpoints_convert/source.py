"""The safetensors files of a Hugging Face folder: names and shapes are held to the table first, values are read slice by slice."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from checkpoints_convert.table import EMBEDDING, HEAD, name_table
from megatron_atesd.errors import ConversionError
from megatron_atesd.model.qwen3 import Architecture

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NOT_WEIGHTS = ("rotary_emb.inv_freq",)  # computed from the config; old checkpoints carry it


class SourceTensor:
    """One tensor in a file: shape and dtype are known, the values are read when it is sliced."""

    def __init__(self, name: str, file: Path, handle: Any) -> None:
        part = handle.get_slice(name)
        self.name, self.file = name, file
        self.shape, self.dtype = tuple(part.get_shape()), str(part.get_dtype())

    def __getitem__(self, part: Any) -> Tensor:
        try:
            # Opened for each read: one mapping for all would keep every page that was ever touched in memory.
            with safe_open(self.file, framework="pt") as handle:
                return handle.get_slice(self.name)[part]
        except (SafetensorError, OSError) as error:
            raise ConversionError(f"{self.file}: {self.name} cannot be read ({error}); download the file again") from error


class HfWeights:
    """The tensors of a Hugging Face model folder. Raises ConversionError when a file is missing, damaged or not safetensors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, SourceTensor] = {}
        for file in weight_files(folder):
            handle = _open(file)
            for name in handle.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                if name in self.tensors:
                    raise ConversionError(f"{file}: tensor {name} is also in {self.tensors[name].file.name}; remove one of the files")
                self.tensors[name] = SourceTensor(name, file, handle)

    def check(self, arch: Architecture) -> None:
        """Hold names, shapes and types to the name table. Raises ConversionError naming the first tensor that does not fit."""
        expected = {name: shape for entry in name_table(arch) for name, shape in entry.sources.items()}
        for name, shape in expected.items():
            if name not in self.tensors:
                raise ConversionError(f"{self.folder}: tensor {name} is missing; config.json promises it, download the weights again")
            self._check_tensor(self.tensors[name], shape)
        for name, tensor in self.tensors.items():
            if name not in expected and not name.endswith(NOT_WEIGHTS) and not self._is_redundant_head(name, arch):
                raise ConversionError(
                    f"{tensor.file}: tensor {name} is not part of a {arch.family} model as config.json describes it; "
                    "convert a folder whose config.json and weights belong together"
                )

    def dtypes(self) -> set[torch.dtype]:
        """The types in which the checked tensors are stored."""
        return {FLOATS[tensor.dtype] for tensor in self.tensors.values()}

    def head_differs(self) -> ConversionError:
        """What to raise for a tied model whose second head is not its embedding."""
        return ConversionError(
            f"{self.tensors[HEAD].file}: config.json says tie_word_embeddings, but {HEAD} differs from {EMBEDDING}; "
            "set tie_word_embeddings to false in config.json, or remove the tensor"
        )

    def _check_tensor(self, tensor: SourceTensor, shape: tuple[int, ...]) -> None:
        where = f"{tensor.file}: {tensor.name}"
        if tensor.shape != shape:
            raise ConversionError(f"{where} has shape {tensor.shape}, config.json asks for {shape}; use files that belong together")
        if tensor.dtype not in FLOATS:
            raise ConversionError(f"{where} is stored as {tensor.dtype}; give weights in fp32, bf16 or fp16, not quantised ones")

    def _is_redundant_head(self, name: str, arch: Architecture) -> bool:
        return name == HEAD and arch.tied and self.tensors[HEAD].shape == self.tensors[EMBEDDING].shape


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the model, as transformers chooses them: model.safetensors, else those that the index names."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return [folder / name for name in _indexed(folder / INDEX)]
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
        raise ConversionError(
            f"{folder}: the weights are pickled (.bin), which may run foreign code; load them once with transformers and "
            "save_pretrained() the model, which writes safetensors"
        )
    raise ConversionError(f"{folder}: no weights here; expected {SINGLE} or {INDEX}")


def _indexed(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        raise ConversionError(f"{index}: not a safetensors index ({error}); download it again") from error


def _open(file: Path) -> Any:
    if not file.is_file():
        raise ConversionError(f"{file}: missing, although {INDEX} names it; download it again")
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ConversionError(f"{file}: damaged or incomplete ({error}); download it again") from error
