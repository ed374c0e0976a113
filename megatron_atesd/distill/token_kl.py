"""Where in a response the KL lies: sums by position over all ranks, and the KL of each token of a few responses."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_atesd.model.micro_batches import MicroBatch
from megatron_atesd.parallel.groups import broadcast_from_last_stage

FIRSTS = tuple(2**i for i in range(20))  # a position bin goes from its first token, counted from 1, to before the next bin's


@dataclass(frozen=True)
class PlaceResult:
    """Over all ranks: response tokens of the position bin that begins with the response's token number `first`, and their mean KL."""

    first: int
    tokens: int
    kl: float


def sums_by_place(batch: MicroBatch, kl_T: Tensor) -> Tensor:
    """[2 · bins] float64: tokens of each position bin, and the sum of their KL (nats)."""
    firsts = torch.tensor(FIRSTS, device=kl_T.device)
    bin_T = torch.bucketize(batch.place_T + 1, firsts, right=True) - 1
    values_T2 = torch.stack([torch.ones_like(kl_T), kl_T], dim=1).double()
    return values_T2.new_zeros(len(FIRSTS), 2).index_add(0, bin_T, values_T2).flatten()


def place_results(sums: Sequence[float]) -> tuple[PlaceResult, ...]:
    """Of `sums_by_place` over all ranks; bins without a token are left out."""
    pairs = zip(FIRSTS, sums[::2], sums[1::2], strict=True)
    return tuple(PlaceResult(first, int(tokens), kl / tokens) for first, tokens, kl in pairs if tokens)


@dataclass
class TokenKL:
    """The KL of each token of a data-parallel rank's first examples, which the last pipeline stage fills in.

    lengths: of their responses.
    """

    lengths: Sequence[int]
    kl: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.kl = torch.zeros(sum(self.lengths), dtype=torch.float64, device=torch.cuda.current_device())

    def take(self, batch: MicroBatch, kl_T: Tensor) -> None:
        """Keep those tokens of `batch`, this context rank's share of it, that are of a wanted example."""
        for row, member in enumerate(batch.members):
            if member < len(self.lengths):
                mine_T = batch.sequence_T == row
                self.kl[sum(self.lengths[:member]) + batch.place_T[mine_T]] = kl_T[mine_T].double()

    def everywhere(self) -> tuple[tuple[float, ...], ...]:
        """Nats of each token of each wanted example, on every rank that has the same examples. Collective over them."""
        if not self.lengths:
            return ()
        dist.all_reduce(self.kl, group=parallel_state.get_context_parallel_group())
        broadcast_from_last_stage(self.kl)
        return tuple(tuple(part.tolist()) for part in self.kl.split(list(self.lengths)))
