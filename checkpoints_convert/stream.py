"""The two directions of a conversion, piece by piece: no model is built, and a few pieces are in memory at a time."""

from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from checkpoints_convert.progress import progress
from checkpoints_convert.safetensors_out import SafetensorsFolder
from megatron_atesd.checkpoint.ahead import made_ahead
from megatron_atesd.checkpoint.hf_tensors import HfWeights, check_finite
from megatron_atesd.checkpoint.layout import Piece, extra_states, pieces, stored_key, stored_shapes
from megatron_atesd.checkpoint.name_table import EMBEDDING, HEAD, name_table
from megatron_atesd.checkpoint.tensor_parts import join, unpack_qkv
from megatron_atesd.checkpoint.torch_dist import Chunk, StoredTensors, write_chunks
from megatron_atesd.errors import CheckpointError, ConversionError
from megatron_atesd.model.architecture import Architecture


def write_megatron(source: HfWeights, arch: Architecture, folder: Path, prefix: str, dtype: torch.dtype) -> dict[str, str]:
    """Write the torch_dist checkpoint `folder`, as megatron.core would from a model whose state has that `prefix`.

    Returns the SHA-256 of its large files, by name.
    source: checked against the table. Raises ConversionError when a value cannot be read, or a tied model's second head differs.
    """
    parts = [piece for entry in name_table(arch) for piece in pieces(entry, arch)]
    total = sum(prod(piece.sizes) for piece in parts) * dtype.itemsize
    with progress("writing Megatron weights", total) as advance:
        make = partial(_parameter_piece, source, arch, dtype, advance)
        chunks = [Chunk(prefix + p.key, p.size, p.offsets, p.sizes, dtype, partial(make, p)) for p in parts]
        return write_chunks(folder, chunks, [prefix + name for name in extra_states(arch)])


def _parameter_piece(source: HfWeights, arch: Architecture, dtype: torch.dtype, advance: Callable[[int], None], piece: Piece) -> Tensor:
    parts = [source.tensors[name][start:stop] for name, (start, stop) in piece.sources.items()]
    if source.has_second_head and EMBEDDING in piece.sources:
        start, stop = piece.sources[EMBEDDING]
        source.check_second_head(source.tensors[HEAD][start:stop], parts[0])
    tensor = join(parts, piece.entry.operation, arch.query_groups).to(dtype)
    advance(tensor.nbytes)
    return tensor


def check_stored(stored: StoredTensors, arch: Architecture) -> None:
    """Hold names and shapes to the table; the vocabulary may be padded. Raises CheckpointError naming the first that does not fit."""
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


def write_hf(stored: StoredTensors, arch: Architecture, folder: Path, dtype: torch.dtype, shard_bytes: int) -> None:
    """Write the model files of the Hugging Face `folder`. stored: checked against the table. Raises CheckpointError."""
    shapes = {name: shape for entry in name_table(arch) for name, shape in entry.sources.items()}
    out = SafetensorsFolder(folder, {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}, shard_bytes)
    with progress("writing Hugging Face weights", sum(map(prod, shapes.values())) * dtype.itemsize) as advance:
        for piece, rows in made_ahead(partial(_stored_piece, stored, dtype, piece) for piece in _stored_pieces(stored, arch)):
            parts = unpack_qkv(rows, arch.query_groups, arch.head_size) if piece.entry.operation == "qkv" else (rows,)
            for name, part in zip(piece.sources, parts, strict=True):
                out.append(name, part)
            advance(rows.nbytes)
    out.close()


def _stored_piece(stored: StoredTensors, dtype: torch.dtype, piece: Piece) -> tuple[Piece, Tensor]:
    rows = stored.read(piece.key, piece.offsets, piece.sizes)
    check_finite(rows, f"{stored.folder}: {', '.join(piece.sources)}")
    return piece, rows.reshape(piece.shape).to(dtype)


def _stored_pieces(stored: StoredTensors, arch: Architecture) -> Iterator[Piece]:
    """Vocabulary rows in the pieces in which they are stored: each of those is read once, and without the padding at their end."""
    for entry in name_table(arch):
        key, _ = stored_key(entry)
        rows = [(start, min(stop, arch.vocabulary)) for start, stop in stored.rows(key) if start < arch.vocabulary]
        yield from pieces(entry, arch, rows if entry.operation == "vocabulary" else ())
