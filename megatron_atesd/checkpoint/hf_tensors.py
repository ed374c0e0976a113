"""The safetensors files of a Hugging Face folder: names and shapes are held to the table first, values are read slice by slice."""

import os
import re
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
# Buffers that old folders carry: rotary frequencies and their tables, causal masks, positions. They follow from the config, so they are
# not read, whatever their type or shape; transformers ignores them too. `self_attn.bias` is a mask, not the bias of a projection.
_BUFFER = re.compile(r"(?:^|\.)(?:rotary_emb\.\w+|rope\.freqs|self_attn\.bias|masked_bias|causal_mask|position_ids)$")


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
    """The tensors of a Hugging Face model folder that belong to `arch`: names, shapes and types are held to the name table.

    Tensors that the model can do without (buffers, the second head of a tied model) need not be where the index says.
    Raises ConversionError when a file is missing, damaged or not safetensors, or naming the first tensor that does not fit.
    """

    def __init__(self, folder: Path, arch: Architecture) -> None:
        self.folder, self._arch = folder, arch
        self.tensors: dict[str, SourceTensor] = {}
        _check_kind(folder)
        weight_map = {} if (folder / SINGLE).is_file() else _weight_map(folder)  # as transformers chooses
        for file in self._files(weight_map) if weight_map else [folder / SINGLE]:
            self._read_names(file)
        for name, file in weight_map.items():
            if not self._can_do_without(name) and (name not in self.tensors or self.tensors[name].file.name != file):
                raise ConversionError(f"{folder / INDEX}: says that {name} is in {file}, where it is not; download index and weights again")
        self._check()

    @property
    def has_second_head(self) -> bool:
        """Whether a tied model carries its head although it is the embedding."""
        return self._arch.tied and HEAD in self.tensors

    def dtypes(self) -> set[torch.dtype]:
        """The types in which the model's tensors are stored; a second head does not count."""
        return {FLOATS[tensor.dtype] for name, tensor in self.tensors.items() if not self._can_do_without(name)}

    def check_second_head(self, head: Tensor, embedding: Tensor) -> None:
        """Raise ConversionError unless these rows of a second head are those of the embedding, up to the rounding of the coarser type."""
        if not (torch.equal(head.to(embedding.dtype), embedding) or torch.equal(head, embedding.to(head.dtype))):
            raise ConversionError(
                f"{self.tensors[HEAD].file}: config.json says tie_word_embeddings, but {HEAD} differs from {EMBEDDING}; "
                "set tie_word_embeddings to false in config.json, or remove the tensor"
            )

    def _can_do_without(self, name: str) -> bool:
        return _BUFFER.search(name) is not None or (self._arch.tied and name == HEAD)

    def _files(self, weight_map: dict[str, str]) -> list[Path]:
        """Those that the index names; one that is not there may be missed while it holds nothing that the model needs."""
        needed = {file for name, file in weight_map.items() if not self._can_do_without(name)}
        return [self.folder / file for file in sorted(set(weight_map.values())) if file in needed or (self.folder / file).is_file()]

    def _read_names(self, file: Path) -> None:
        handle = _open(file)
        for name in handle.keys():  # noqa: SIM118 - a safetensors handle is no mapping
            if name in self.tensors:
                raise ConversionError(f"{file}: tensor {name} is also in {self.tensors[name].file.name}; remove one of the files")
            if not _BUFFER.search(name):
                self.tensors[name] = SourceTensor(name, file, handle)

    def _check(self) -> None:
        expected = {name: shape for entry in name_table(self._arch) for name, shape in entry.sources.items()}
        for name in expected:
            if name not in self.tensors:
                raise ConversionError(f"{self.folder}: tensor {name} is missing; config.json promises it, download the weights again")
        if self.has_second_head:
            expected[HEAD] = expected[EMBEDDING]
        for name, tensor in self.tensors.items():
            if name not in expected:
                raise ConversionError(
                    f"{tensor.file}: tensor {name} is not part of a {self._arch.family} model as config.json describes it; "
                    "convert a folder whose config.json and weights belong together"
                )
            self._check_tensor(tensor, expected[name])

    def _check_tensor(self, tensor: SourceTensor, shape: tuple[int, ...]) -> None:
        where = f"{tensor.file}: {tensor.name}"
        if tensor.shape != shape:
            raise ConversionError(f"{where} has shape {tensor.shape}, config.json asks for {shape}; use files that belong together")
        if tensor.dtype not in FLOATS:
            raise ConversionError(f"{where} is stored as {tensor.dtype}; give weights in fp32, bf16 or fp16, not quantised ones")


def weight_files(folder: Path) -> list[str]:
    """Names of the files with the weights: model.safetensors, else those that the index names and that are there.

    Raises ConversionError for a folder without safetensors weights.
    """
    _check_kind(folder)
    if (folder / SINGLE).is_file():
        return [SINGLE]
    return sorted(name for name in set(_weight_map(folder).values()) if (folder / name).is_file())


def _check_kind(folder: Path) -> None:
    """Raise ConversionError for a folder without safetensors weights."""
    for path in (folder / SINGLE, folder / INDEX):
        if os.path.lexists(path) and not path.is_file():
            raise ConversionError(f"{path}: is a folder, or a link that leads nowhere; put the file itself there")
    if (folder / SINGLE).is_file() or (folder / INDEX).is_file():
        return
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
