"""What autograd keeps for the backward pass: the most bytes at one time, on any device, the meta device included."""

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class KeptForBackward(saved_tensors_hooks):
    """While active, `peak` follows the bytes of all saved tensors; each storage counts once, those of `parameters` not at all."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__(lambda tensor: _Kept(self, tensor), lambda kept: kept.tensor)
        self.parameters = {_storage(p) for p in parameters}
        self.users: Counter[int] = Counter()
        self.bytes = self.peak = 0

    def change(self, storage: int, size: int, users: int) -> None:
        """`users` (1 or -1) more saved tensors in this storage."""
        if storage in self.parameters:
            return
        before, after = self.users[storage], self.users[storage] + users
        self.users[storage] = after
        self.bytes += size * ((after > 0) - (before > 0))
        self.peak = max(self.peak, self.bytes)


class _Kept:
    """A saved tensor, for as long as the graph holds it."""

    def __init__(self, owner: KeptForBackward, tensor: Tensor) -> None:
        self.owner, self.tensor, self.size = owner, tensor, tensor.untyped_storage().nbytes()
        owner.change(_storage(tensor), self.size, 1)

    def __del__(self) -> None:
        self.owner.change(_storage(self.tensor), self.size, -1)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
