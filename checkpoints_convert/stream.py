"""The two directions of a conversion, piece by piece: no model is built, and a few pieces are in memory at a time."""

from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from checkpoints_convert.progress import progress
from checkpoints_convert.safetensors_out import SafetensorsFolder
from checkpoints_convert.sources import Source
from megatron_atesd.checkpoint.ahead import made_ahead
from megatron_atesd.checkpoint.layout import Piece, extra_states
from megatron_atesd.checkpoint.name_table import name_table
from megatron_atesd.checkpoint.tensor_parts import join
from megatron_atesd.checkpoint.torch_dist import Chunk, write_chunks
from megatron_atesd.errors import ConversionError
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.finite import all_finite


def write_megatron(source: Source, arch: Architecture, folder: Path, prefix: str, dtype: torch.dtype) -> dict[str, str]:
    """Write the torch_dist checkpoint `folder`, as megatron.core would from a model whose state has that `prefix`.

    Returns the SHA-256 of its large files, by name. Raises what `source` raises.
    """
    parts = list(source.pieces())
    total = sum(prod(piece.sizes) for piece in parts) * dtype.itemsize
    with progress("writing Megatron weights", total) as advance:
        make = partial(_parameter_piece, source, arch, dtype, advance)
        chunks = [Chunk(prefix + p.key, p.size, p.offsets, p.sizes, dtype, partial(make, p)) for p in parts]
        return write_chunks(folder, chunks, [prefix + name for name in extra_states(arch)])


def _parameter_piece(source: Source, arch: Architecture, dtype: torch.dtype, advance: Callable[[int], None], piece: Piece) -> Tensor:
    tensor = join(_parts(source, dtype, piece), piece.entry.operation, arch.query_groups)
    advance(tensor.nbytes)
    return tensor


def write_hf(source: Source, arch: Architecture, folder: Path, dtype: torch.dtype, shard_bytes: int) -> None:
    """Write the model files of the Hugging Face `folder`. Raises what `source` raises."""
    shapes = {name: shape for entry in name_table(arch) for name, shape in entry.sources.items()}
    out = SafetensorsFolder(folder, {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}, shard_bytes)
    with progress("writing Hugging Face weights", sum(map(prod, shapes.values())) * dtype.itemsize) as advance:
        for piece, parts in made_ahead(partial(_named_parts, source, dtype, piece) for piece in source.pieces()):
            for name, part in zip(piece.sources, parts, strict=True):
                out.append(name, part)
                advance(part.nbytes)
    out.close()


def _named_parts(source: Source, dtype: torch.dtype, piece: Piece) -> tuple[Piece, list[Tensor]]:
    return piece, _parts(source, dtype, piece)


def _parts(source: Source, dtype: torch.dtype, piece: Piece) -> list[Tensor]:
    return [_rounded(part, dtype, name) for name, part in zip(piece.sources, source.parts(piece), strict=True)]


def _rounded(part: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    if part.dtype == dtype:
        return part
    rounded = part.to(dtype)
    if dtype == torch.float16 and not all_finite(rounded):  # its range is smaller than that of the others
        raise ConversionError(f"{name} holds values that are too large for fp16; choose --dtype fp32 or --dtype bf16")
    return rounded
