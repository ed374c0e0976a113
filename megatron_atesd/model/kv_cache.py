"""Keys and values of sequences that are being generated, in blocks that grow a little at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class CacheLedger:
    """Bytes of keys and values that are there now, and the most there ever were at one time, on this rank."""

    now: int = 0
    peak: int = 0

    def add(self, tensor: Tensor) -> Tensor:
        self.now += tensor.nbytes
        self.peak = max(self.peak, self.now)
        return tensor

    def remove(self, tensor: Tensor) -> None:
        self.now -= tensor.nbytes


class CacheBlock:
    """Keys and values of B sequences whose newest tokens share a column: a pair [B, G, capacity, D] a layer (G: this rank's query groups).

    Sequence b fills the columns starts_B[b] … width - 1. All grow by one column a step, so that a new token is written without an index,
    and a block whose sequences are equally long needs no mask.
    """

    def __init__(self, lengths: Sequence[int], room: int, device: torch.device, ledger: CacheLedger) -> None:
        """Of sequences of these lengths, with `room` free columns."""
        self.ledger, self.device = ledger, device
        self.width = max(lengths)
        self.capacity = self.width + room
        self.layers: dict[int, list[Tensor]] = {}
        self._set_starts([self.width - length for length in lengths])

    def _set_starts(self, starts: Sequence[int]) -> None:
        self.starts = list(starts)
        self.starts_B = torch.tensor(self.starts, device=self.device)
        self.ragged = any(self.starts)
        self._mask: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Those that the sequences have."""
        return self.width * len(self.starts) - sum(self.starts)

    def positions(self) -> Tensor:
        """Position [B] of the token that comes next."""
        return self.width - self.starts_B

    def store_prompts(self, layer: int, keys_PGSD: Tensor, values_PGSD: Tensor, prompt_B: Tensor | None) -> None:
        """The first columns, from prompts padded on the right to the block's width. prompt_B: which one a sequence has (None: in order)."""
        self.layers[layer] = []
        for part_PGSD in (keys_PGSD, values_PGSD):
            part_BGSD = part_PGSD if prompt_B is None else part_PGSD[prompt_B]
            batch, groups, _, size = part_BGSD.shape
            stored = self.ledger.add(part_BGSD.new_empty(batch, groups, self.capacity, size))
            stored[:, :, : self.width] = self._to_the_right(part_BGSD)
            self.layers[layer].append(stored)

    def _to_the_right(self, part_BGSD: Tensor) -> Tensor:
        if not self.ragged:
            return part_BGSD
        columns_BS = (torch.arange(self.width, device=self.device) - self.starts_B[:, None]).clamp_min(0)
        return part_BGSD.gather(2, columns_BS[:, None, :, None].expand_as(part_BGSD))

    def append(self, layer: int, key_BGD: Tensor, value_BGD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, G, width + 1, D] with those of the new token; `advance` follows when all layers have theirs."""
        keys, values = self.layers[layer]
        keys[:, :, self.width] = key_BGD
        values[:, :, self.width] = value_BGD
        return keys[:, :, : self.width + 1], values[:, :, : self.width + 1]

    def mask(self) -> Tensor | None:
        """Which columns [B, 1, 1, width + 1] are a sequence's, None where all are."""
        if self.ragged and (self._mask is None or self._mask.shape[-1] != self.width + 1):
            self._mask = (torch.arange(self.width + 1, device=self.device) >= self.starts_B[:, None])[:, None, None, :]
        return self._mask if self.ragged else None

    def advance(self) -> None:
        """The step that `append` belongs to is finished in every layer."""
        self.width += 1

    def free(self) -> None:
        """The block is not used again."""
        for pair in self.layers.values():
            for part in pair:
                self.ledger.remove(part)
        self.layers.clear()

    @staticmethod
    def joined(parts: Sequence[tuple["CacheBlock", Sequence[int]]], room: int) -> "CacheBlock":
        """One block with `room` free columns, of the named sequences of several blocks, which are freed.

        There are two copies of one layer's keys, or values, at a time.
        """
        lengths = [block.width - block.starts[row] for block, rows in parts for row in rows]
        first = parts[0][0]
        new = CacheBlock(lengths, room, first.device, first.ledger)
        for layer in list(first.layers):
            pairs = [block.layers.pop(layer) for block, _ in parts]
            new.layers[layer] = [new._take([(*part, pair[which]) for part, pair in zip(parts, pairs, strict=True)]) for which in (0, 1)]
        return new

    def _take(self, parts: Sequence[tuple["CacheBlock", Sequence[int], Tensor]]) -> Tensor:
        _, groups, _, size = parts[0][2].shape
        new = self.ledger.add(parts[0][2].new_empty(len(self.starts), groups, self.capacity, size))
        stop = 0
        for block, rows, old in parts:
            rows_here, width = slice(stop, stop + len(rows)), block.width - min(block.starts[row] for row in rows)
            stop += len(rows)
            new[rows_here, :, : self.width - width] = 0  # masked, but a NaN would go through
            kept = old if len(rows) == len(old) else old[torch.tensor(rows, device=old.device)]
            new[rows_here, :, self.width - width : self.width] = kept[:, :, block.width - width : block.width]
            self.ledger.remove(old)
        return new
