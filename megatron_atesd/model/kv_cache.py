"""Keys and values of sequences that are being generated.

The model that trains is the model that samples: while a `KVCache` is in the shared `CacheSlot`, attention appends to it and rotary
embedding uses each sequence's own positions; with an empty slot both are the plain causal training forward, of which a context-parallel
rank has its part (parallel/context.py). Generation is not divided over context parallelism.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class KVCache:
    """Keys and values of one generation batch, one [B, G, capacity, D] pair a layer (G query groups of this TP rank).

    Call 1 stores whole right-padded prompts; each later call appends one token a sequence at that sequence's own length.
    """

    def __init__(self, prompt_lengths_B: Tensor, capacity: int) -> None:
        self.lengths_B = prompt_lengths_B
        self.capacity = capacity
        self.longest = int(prompt_lengths_B.max())
        self.prefilled = False
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def positions(self, steps: int) -> Tensor:
        """Positions [S, B] of the tokens now fed: 0…S-1 while the prompts are stored, then each sequence's length."""
        if self.prefilled:
            return self.lengths_B[None, :]
        return torch.arange(steps, device=self.lengths_B.device)[:, None].expand(-1, len(self.lengths_B))

    def advance(self) -> None:
        """One decoding step is finished in every layer."""
        if self.prefilled:
            self.lengths_B = self.lengths_B + 1
            self.longest += 1
        self.prefilled = True

    def keep(self, rows: Tensor) -> None:
        """Drop the sequences that are not in `rows` (indices): finished ones cost nothing further."""
        self.lengths_B = self.lengths_B[rows]
        self._layers = {layer: (keys[rows], values[rows]) for layer, (keys, values) in self._layers.items()}

    def store_prompt(self, layer: int, keys_BGSD: Tensor, values_BGSD: Tensor) -> None:
        batch, groups, steps, size = keys_BGSD.shape
        pair = keys_BGSD.new_zeros(batch, groups, self.capacity, size), values_BGSD.new_zeros(batch, groups, self.capacity, size)
        pair[0][:, :, :steps], pair[1][:, :, :steps] = keys_BGSD, values_BGSD
        self._layers[layer] = pair

    def append(self, layer: int, keys_BGSD: Tensor, values_BGSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Store one token a sequence; returns keys and values up to the longest sequence, and the mask [B, 1, 1, S] of valid ones."""
        keys, values = self._layers[layer]
        rows = torch.arange(len(self.lengths_B), device=keys.device)
        keys[rows, :, self.lengths_B] = keys_BGSD[:, :, 0]
        values[rows, :, self.lengths_B] = values_BGSD[:, :, 0]
        stop = self.longest + 1
        valid = torch.arange(stop, device=keys.device)[None, :] <= self.lengths_B[:, None]
        return keys[:, :, :stop], values[:, :, :stop], valid[:, None, None, :]


class CacheSlot:
    """Where all layers of one model look for the KV cache in use."""

    def __init__(self) -> None:
        self.cache: KVCache | None = None

    @contextmanager
    def use(self, cache: KVCache) -> Iterator[KVCache]:
        self.cache = cache
        try:
            yield cache
        finally:
            self.cache = None
