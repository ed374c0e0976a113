"""Where each parameter lies in a Megatron checkpoint (torch_dist): megatron.core's own places, the same at every TP × PP.

Layers are stacked: `decoder.layers.3.mlp.linear_fc2.weight` [H, F] is `decoder.layers.mlp.linear_fc2.weight` [L, H, F] at offset 3.
Norms go by Transformer Engine's spelling in the checkpoints of both layer specs, so a model of either one loads them.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from megatron_atesd.checkpoint.name_table import Entry, name_table
from megatron_atesd.model.architecture import Architecture

PIECE_BYTES = 64 * 2**20  # of a vocabulary matrix; counted as if stored in fp32
EXTRA_STATE = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")
_LAYER = re.compile(r"(decoder\.layers)\.(\d+)\.")

Rows = tuple[int, int]


@dataclass(frozen=True)
class Piece:
    """Part of a parameter that is converted at one time.

    key, size: the stored tensor and its whole shape. offsets, sizes: the piece in it.
    sources: Hugging Face names of what is in it, each with its rows there.
    """

    entry: Entry
    key: str
    size: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    sources: dict[str, Rows]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of these rows of the parameter, without the dimension of the layers."""
        return self.sizes[-len(self.entry.shape) :]


def stored_key(entry: Entry) -> tuple[str, int | None]:
    """Name of the stored tensor (without prefix) and, for a stacked one, the layer."""
    match = _LAYER.match(entry.stored)
    return (_LAYER.sub(r"\1.", entry.stored), int(match[2])) if match else (entry.stored, None)


def stored_shapes(arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Every stored tensor of a model with its whole shape."""
    places = ((stored_key(entry), entry.shape) for entry in name_table(arch))
    return {key: shape if layer is None else (arch.layers, *shape) for (key, layer), shape in places}


def extra_states(arch: Architecture) -> Iterator[str]:
    """Names of the empty objects that megatron.core's linear layers keep beside their weights: other programs ask for them as they load."""
    for layer in range(arch.layers):
        yield from (f"decoder.layers.{module}._extra_state/shard_{layer}_{arch.layers}" for module in EXTRA_STATE)


def pieces(entry: Entry, arch: Architecture, vocabulary_rows: Sequence[Rows] = ()) -> Iterator[Piece]:
    """The pieces of a parameter, in the order of its rows.

    A fused gate and up projection comes in two, a vocabulary matrix in `vocabulary_rows`, by default of at most PIECE_BYTES.
    """
    key, layer = stored_key(entry)
    lead = () if layer is None else (layer,)
    for (start, stop), sources in _row_ranges(entry, vocabulary_rows):
        yield Piece(
            entry,
            key,
            size=entry.shape if layer is None else (arch.layers, *entry.shape),
            offsets=(*lead, start, *(0 for _ in entry.shape[1:])),
            sizes=(*(1 for _ in lead), stop - start, *entry.shape[1:]),
            sources=sources,
        )


def _row_ranges(entry: Entry, vocabulary_rows: Sequence[Rows]) -> Iterator[tuple[Rows, dict[str, Rows]]]:
    if entry.operation == "vocabulary":
        ((name, _),) = entry.sources.items()
        yield from ((rows, {name: rows}) for rows in vocabulary_rows or _even_rows(entry.shape))
    elif entry.operation == "gate_up":
        for number, (name, (rows, _)) in enumerate(entry.sources.items()):
            yield (number * rows, (number + 1) * rows), {name: (0, rows)}
    else:
        yield (0, entry.shape[0]), {name: (0, shape[0]) for name, shape in entry.sources.items()}


def _even_rows(shape: tuple[int, ...]) -> Iterator[Rows]:
    step = max(1, PIECE_BYTES // (4 * prod(shape[1:])))
    yield from ((start, min(start + step, shape[0])) for start in range(0, shape[0], step))
