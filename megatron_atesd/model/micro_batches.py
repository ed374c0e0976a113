"""Token sequences → micro-batches within a token budget, and where in them each response token is predicted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

TokenIds = Sequence[int]
Pair = tuple[TokenIds, TokenIds]


@dataclass(frozen=True)
class Needs:
    """What a layout asks of micro-batches.

    multiple: their padded length is a multiple of this; sequence: so is each sequence's of this, by itself (2·CP chunks).
    count: their number is a multiple of this (an interleaved pipeline's demand).
    packed: sequences lie one after the other, instead of each in a row of its own that is as long as the longest.
    share: (rank, size): this rank has every size-th token of each response, from the rank-th on; another has the others.
    """

    multiple: int = 1
    sequence: int = 1
    count: int = 1
    packed: bool = False
    share: tuple[int, int] = (0, 1)

    def slot(self, pair: Pair) -> int:
        """Tokens that a sequence takes; in a row with longer ones it is more."""
        return round_up(length_of(pair), self.sequence if self.packed else self.multiple)


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch.

    members: which of the given pairs its sequences are (fewer than there are where one only fills the place).
    ids_BS: prompt + response, padded on the right (causal attention and rotary by index need no mask for that); with `bounds` B is 1, and
        the sequences with their padding lie between these positions.
    positions_T: index into the flattened [B·S] of the hidden state that predicts each response token of this rank's share.
    targets_T: those response tokens. sequence_T: which of the sequences each belongs to. place_T: which of its response's tokens it is.
    lengths_N: tokens of the sequences' whole responses.
    """

    members: tuple[int, ...]
    ids_BS: Tensor
    positions_T: Tensor
    targets_T: Tensor
    sequence_T: Tensor
    place_T: Tensor
    lengths_N: Tensor
    bounds: tuple[int, ...] | None = None

    def response_hidden(self, hidden_BSH: Tensor) -> Tensor:
        """Hidden states [T, H] that predict the response tokens, sequence after sequence."""
        return hidden_BSH.flatten(0, 1).index_select(0, self.positions_T)

    def shared_lengths(self) -> list[int]:
        """Response tokens of each member that are in this rank's share."""
        return torch.bincount(self.sequence_T, minlength=len(self.lengths_N)).tolist()[: len(self.members)]


def micro_batches(pairs: Sequence[Pair], tokens: int, needs: Needs | None = None) -> list[MicroBatch]:
    """Micro-batches of (prompt, response) pairs, each of up to `tokens` tokens with padding; a longer pair has one for itself.

    The longest pairs come first. In rows, pairs of similar length go together, so that little is padded; packed, each goes into the first
    micro-batch that has room for it, so that there are few. At least one micro-batch comes: those that are missing hold one token and no
    response, so that every rank takes part in every collective.
    Raises ValueError for an empty prompt: nothing would predict the first token of its response.
    """
    needs = needs or Needs()
    if not all(prompt for prompt, _ in pairs):
        raise ValueError("a prompt is empty; it must have at least one token")
    order = sorted(range(len(pairs)), key=lambda i: -length_of(pairs[i]))
    slots = {i: needs.slot(pairs[i]) for i in order}
    together = _first_with_room(slots, tokens, needs.multiple) if needs.packed else _beside_longest(slots, tokens)
    batches = [_pack([pairs[i] for i in members], members, needs) for members in together]
    missing = max(-len(batches) % needs.count, 0 if batches else needs.count)
    return batches + [_pack([((0,), ())], (), needs)] * missing


def padding_share(batches: Sequence[MicroBatch], pairs: Sequence[Pair]) -> tuple[int, int]:
    """(tokens that only pad, all tokens) of the micro-batches made from `pairs`."""
    slots = sum(batch.ids_BS.numel() for batch in batches)
    return slots - sum(map(length_of, pairs)), slots


def length_of(pair: Pair) -> int:
    return len(pair[0]) + len(pair[1])


def round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _beside_longest(slots: dict[int, int], tokens: int) -> Iterator[tuple[int, ...]]:
    """As many pairs, by falling length, as fit beside the longest of them."""
    order = list(slots)
    start = 0
    while start < len(order):
        size = max(1, tokens // slots[order[start]])
        yield tuple(order[start : start + size])
        start += size


def _first_with_room(slots: dict[int, int], tokens: int, multiple: int) -> list[tuple[int, ...]]:
    """First fit, by falling length: at most 11/9 of the fewest micro-batches possible, and one."""
    found: list[list[int]] = []
    filled: list[int] = []
    for pair, slot in slots.items():
        index = next((i for i, used in enumerate(filled) if round_up(used + slot, multiple) <= tokens), len(found))
        if index == len(found):
            found.append([])
            filled.append(0)
        found[index].append(pair)
        filled[index] += slot
    return [tuple(members) for members in found]


def _pack(pairs: Sequence[Pair], members: tuple[int, ...], needs: Needs) -> MicroBatch:
    """Sequences sliced by their true lengths. What a packed micro-batch lacks to its multiple pads its last sequence."""
    slots = [needs.slot(pair) for pair in pairs]
    if needs.packed:
        slots[-1] += -sum(slots) % needs.multiple
    else:
        slots = [max(slots)] * len(slots)
    starts = (0, *accumulate(slots))
    rank, size = needs.share
    ids = [[*prompt, *response, *[0] * (slot - len(prompt) - len(response))] for slot, (prompt, response) in zip(slots, pairs, strict=True)]
    shared = [(row, place) for row, (_, response) in enumerate(pairs) for place in range(rank, len(response), size)]
    fields = (
        [[token for row in ids for token in row]] if needs.packed else ids,
        [starts[row] + len(pairs[row][0]) - 1 + place for row, place in shared],
        [pairs[row][1][place] for row, place in shared],
        [row for row, _ in shared],
        [place for _, place in shared],
        [len(response) for _, response in pairs],
    )
    device = torch.cuda.current_device()
    tensors = (torch.tensor(values, dtype=torch.long, device=device) for values in fields)
    return MicroBatch(members, *tensors, bounds=starts if needs.packed else None)
