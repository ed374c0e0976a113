"""The safetensors files of a Hugging Face folder: names and shapes are held to the table first, values are read slice by slice."""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_atesd.checkpoint.name_table import EMBEDDING, HEAD, name_table
from megatron_atesd.data.hf_json import read_json_object
from megatron_atesd.errors import ConversionError
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.finite import all_finite

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
                values = handle.get_slice(self.name)[part]
        except (SafetensorError, OSError) as error:
            raise ConversionError(f"{self.file}: {self.name} cannot be read ({error}); download the file again") from error
        check_finite(values, f"{self.file}: {self.name}")
        return values


def check_finite(values: Tensor, where: str) -> None:
    """Raise ConversionError when a weight is NaN or infinite: such a model computes nothing. Costs one fast pass over `values`."""
    if not all_finite(values):
        raise ConversionError(f"{where} holds NaN or infinite weights: the model is damaged; use another copy or an earlier checkpoint")


class HfWeights:
    """The tensors of a Hugging Face model folder. Raises ConversionError when a file is missing, damaged or not safetensors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, SourceTensor] = {}
        files = weight_files(folder)
        for file in files:
            handle = _open(file)
            for name in handle.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                if name in self.tensors:
                    raise ConversionError(f"{file}: tensor {name} is also in {self.tensors[name].file.name}; remove one of the files")
                self.tensors[name] = SourceTensor(name, file, handle)
        for name, file in _weight_map(folder).items() if files[0].name != SINGLE else ():
            if name not in self.tensors or self.tensors[name].file.name != file:
                raise ConversionError(f"{folder / INDEX}: says that {name} is in {file}, where it is not; download index and weights again")

    def check(self, arch: Architecture) -> None:
        """Hold names, shapes and types to the name table. Raises ConversionError naming the first tensor that does not fit."""
        expected: dict[str, tuple[int, ...]] = {}
        for name, shape in (source for entry in name_table(arch) for source in entry.sources.items()):
            expected[name] = shape
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
    for path in (folder / SINGLE, folder / INDEX):
        if os.path.lexists(path) and not path.is_file():
            raise ConversionError(f"{path}: is a folder, or a link that leads nowhere; put the file itself there")
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return [folder / name for name in sorted(set(_weight_map(folder).values()))]
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
        raise ConversionError(
            f"{folder}: the weights are pickled (.bin), which may run foreign code; load them once with transformers and "
            "save_pretrained() the model, which writes safetensors"
        )
    raise ConversionError(f"{folder}: no weights here; expected {SINGLE} or {INDEX}")


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor → name of its file in this folder, as the index says."""
    index = folder / INDEX
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConversionError(f"{index}: not a safetensors index, it has no weight_map; download it again")
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise ConversionError(f"{index}: {name} is in {file!r}, which is no file name of this folder; download the index again")
    return weight_map


def _open(file: Path) -> Any:
    if not file.is_file():
        raise ConversionError(f"{file}: missing, although {INDEX} names it; download it again")
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ConversionError(f"{file}: damaged or incomplete ({error}); download it again") from error
