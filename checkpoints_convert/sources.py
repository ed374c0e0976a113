"""What a conversion reads, whatever the folder is: pieces of Hugging Face tensors, plain or with an adapter merged in."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from megatron_atesd.checkpoint.adapter_tensors import Adapters, product
from megatron_atesd.checkpoint.hf_tensors import HfWeights, check_finite
from megatron_atesd.checkpoint.layout import Piece, pieces, stored_key, stored_shapes
from megatron_atesd.checkpoint.name_table import EMBEDDING, HEAD, name_table
from megatron_atesd.checkpoint.reading import check_model_folder
from megatron_atesd.checkpoint.tensor_parts import unpack_qkv
from megatron_atesd.checkpoint.torch_dist import StoredTensors
from megatron_atesd.errors import CheckpointError, ConversionError
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.trained import MODEL_PREFIX


class Source(Protocol):
    """The weights of one model."""

    def pieces(self) -> Iterator[Piece]:
        """All of the model, in the order of the name table."""
        ...

    def parts(self, piece: Piece) -> list[Tensor]:
        """The rows of each of `piece.sources`, in their order, as stored. Raises ConversionError or CheckpointError."""
        ...

    def dtypes(self) -> set[torch.dtype]:
        """The types in which the weights are stored."""
        ...


class HfSource:
    """A Hugging Face folder. Raises ConversionError, also when a tied model's second head differs."""

    def __init__(self, weights: HfWeights, arch: Architecture) -> None:
        self._weights, self._arch = weights, arch

    def dtypes(self) -> set[torch.dtype]:
        return self._weights.dtypes()

    def pieces(self) -> Iterator[Piece]:
        for entry in name_table(self._arch):
            yield from pieces(entry, self._arch)

    def parts(self, piece: Piece) -> list[Tensor]:
        tensors = self._weights.tensors
        parts = [tensors[name][start:stop] for name, (start, stop) in piece.sources.items()]
        if self._weights.has_second_head and EMBEDDING in piece.sources:
            start, stop = piece.sources[EMBEDDING]
            self._weights.check_second_head(tensors[HEAD][start:stop], parts[0])
        return parts


class MegatronSource:
    """The weights of a Megatron checkpoint under one prefix: names and shapes are held to the table. Raises CheckpointError."""

    def __init__(self, stored: StoredTensors, arch: Architecture) -> None:
        self._stored, self._arch = stored, arch
        _check_stored(stored, arch)

    def dtypes(self) -> set[torch.dtype]:
        return self._stored.dtypes()

    def pieces(self) -> Iterator[Piece]:
        """Vocabulary rows in the pieces in which they are stored: each of those is read once, and without the padding at their end."""
        vocabulary = self._arch.vocabulary
        for entry in name_table(self._arch):
            key, _ = stored_key(entry)
            rows = [(start, min(stop, vocabulary)) for start, stop in self._stored.rows(key) if start < vocabulary]
            yield from pieces(entry, self._arch, rows if entry.operation == "vocabulary" else ())

    def parts(self, piece: Piece) -> list[Tensor]:
        rows = self._stored.read(piece.key, piece.offsets, piece.sizes)
        check_finite(rows, f"{self._stored.folder}: {', '.join(piece.sources)}")
        rows = rows.reshape(piece.shape)
        return list(unpack_qkv(rows, self._arch.query_groups, self._arch.head_size)) if piece.entry.operation == "qkv" else [rows]


def _check_stored(stored: StoredTensors, arch: Architecture) -> None:
    """The vocabulary may be padded. Raises CheckpointError naming the first tensor that does not fit."""
    expected, found = stored_shapes(arch), stored.shapes()
    vocabulary = {stored_key(entry)[0] for entry in name_table(arch) if entry.operation == "vocabulary"}
    for key, shape in expected.items():
        if key not in found:
            raise CheckpointError(f"{stored.folder}: {stored.prefix}{key} is missing; config.json promises it, use another checkpoint")
        padded = key in vocabulary and found[key][0] >= shape[0] and found[key][1:] == shape[1:]
        if found[key] != shape and not padded:
            where = f"{stored.folder}: {stored.prefix}{key}"
            raise CheckpointError(f"{where} has shape {found[key]}, config.json asks for {shape}; use a config.json of this model")
    for key in found.keys() - expected.keys():
        raise ConversionError(f"{stored.folder}: {stored.prefix}{key} has no counterpart in a Hugging Face {arch.family} model")


class MergedSource:
    """Another source with adapters merged in: W + s·B·A in fp32 of each projection that has one, everything else as it is."""

    def __init__(self, base: Source, adapters: Adapters) -> None:
        self._base, self._adapters = base, adapters

    def dtypes(self) -> set[torch.dtype]:
        """The base's: a merged weight is to be written in these."""
        return self._base.dtypes()

    def pieces(self) -> Iterator[Piece]:
        return self._base.pieces()

    def parts(self, piece: Piece) -> list[Tensor]:
        rows = zip(piece.sources.items(), self._base.parts(piece), strict=True)
        return [self._merged(name.removesuffix(".weight"), start, stop, part) for (name, (start, stop)), part in rows]

    def _merged(self, projection: str, start: int, stop: int, weight: Tensor) -> Tensor:
        a, b = (f"{projection}.{factor}.weight" for factor in ("lora_A", "lora_B"))
        if a not in self._adapters.shapes:
            return weight
        merged = weight.float() + product(self._adapters.read(a), self._adapters.read(b)[start:stop], self._adapters.settings)
        check_finite(merged, f"{projection} with its adapter")
        return merged


def model_source(folder: Path, arch: Architecture) -> Source:
    """The weights of a Hugging Face folder or a Megatron model folder, whose checksums are held to its files first."""
    if (folder / "config.json").is_file():
        return HfSource(HfWeights(folder, arch), arch)
    check_model_folder(folder)
    return MegatronSource(StoredTensors(folder / "weights", MODEL_PREFIX), arch)
