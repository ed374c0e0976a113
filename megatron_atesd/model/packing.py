"""Token sequences → right-padded micro-batches within a token budget, and where in them each response token is predicted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TokenIds = Sequence[int]
Pair = tuple[TokenIds, TokenIds]


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch.

    members: which of the given pairs its B sequences are (fewer than B where a sequence only fills the place).
    ids_BS: prompt + response, right-padded (causal attention and rotary by index need no mask for that).
    positions_T: index into the flattened [B·S] of the hidden state that predicts each response token.
    targets_T: those response tokens. sequence_T: which of the B sequences each belongs to.
    """

    members: tuple[int, ...]
    ids_BS: Tensor
    positions_T: Tensor
    targets_T: Tensor
    sequence_T: Tensor

    def response_hidden(self, hidden_BSH: Tensor) -> Tensor:
        """Hidden states [T, H] that predict the response tokens, sequence after sequence."""
        return hidden_BSH.flatten(0, 1).index_select(0, self.positions_T)

    def response_lengths(self) -> Tensor:
        """Response tokens of each sequence [B]."""
        return torch.bincount(self.sequence_T, minlength=len(self.ids_BS))


def micro_batches(pairs: Sequence[Pair], tokens: int, multiple: int = 1, count_multiple: int = 1) -> list[PackedBatch]:
    """Micro-batches of (prompt, response) pairs, each of up to `tokens` tokens with padding; a longer pair has one for itself.

    The longest pairs come first, and pairs of similar length together, so that little is padded. Padded lengths are a multiple of
    `multiple` (TP under sequence parallelism). At least one micro-batch comes, and a multiple of `count_multiple` (an interleaved
    pipeline's demand): those that are missing hold one token and no response, so that every rank takes part in every collective.
    Raises ValueError for an empty prompt: nothing would predict the first token of its response.
    """
    if not all(prompt for prompt, _ in pairs):
        raise ValueError("a prompt is empty; it must have at least one token")
    batches = [_pack([pairs[i] for i in members], members, multiple) for members in _members(pairs, tokens, multiple)]
    missing = max(-len(batches) % count_multiple, 0 if batches else count_multiple)
    return batches + [_pack([((0,), ())], (), multiple)] * missing


def padding_share(batches: Sequence[PackedBatch], pairs: Sequence[Pair]) -> tuple[int, int]:
    """(tokens that only pad, all tokens) of the micro-batches made from `pairs`."""
    slots = sum(batch.ids_BS.numel() for batch in batches)
    return slots - sum(map(_length, pairs)), slots


def _length(pair: Pair) -> int:
    return len(pair[0]) + len(pair[1])


def _members(pairs: Sequence[Pair], tokens: int, multiple: int) -> Iterator[tuple[int, ...]]:
    """Which pairs go together: by falling length, as many as fit beside the longest."""
    order = sorted(range(len(pairs)), key=lambda i: -_length(pairs[i]))
    start = 0
    while start < len(order):
        size = max(1, tokens // _round_up(_length(pairs[order[start]]), multiple))
        yield tuple(order[start : start + size])
        start += size


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _pack(pairs: Sequence[Pair], members: tuple[int, ...], multiple: int) -> PackedBatch:
    """Sequences sliced by their true lengths."""
    device = torch.cuda.current_device()
    width = _round_up(max(map(_length, pairs)), multiple)
    ids = [[*prompt, *response, *[0] * (width - len(prompt) - len(response))] for prompt, response in pairs]
    positions = [row * width + len(prompt) - 1 + i for row, (prompt, response) in enumerate(pairs) for i in range(len(response))]
    rows = [row for row, (_, response) in enumerate(pairs) for _ in response]
    targets = [token for _, response in pairs for token in response]
    return PackedBatch(members, *(torch.tensor(values, dtype=torch.long, device=device) for values in (ids, positions, targets, rows)))
