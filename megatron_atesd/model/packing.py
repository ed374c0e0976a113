"""Token sequences → right-padded micro-batches, and where in them each response token is predicted."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TokenIds = Sequence[int]


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch.

    ids_BS: prompt + response, right-padded (causal attention and rotary by index need no mask for that).
    positions_T: index into the flattened [B·S] of the hidden state that predicts each response token.
    targets_T: those response tokens. sequence_T: which of the B sequences each belongs to.
    """

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


def pack(pairs: Sequence[tuple[TokenIds, TokenIds]], multiple: int = 1) -> PackedBatch:
    """Pack (prompt, response) pairs, sliced by their true lengths; the padded length is a multiple of `multiple` (TP under SP)."""
    device = torch.cuda.current_device()
    lengths = [len(prompt) + len(response) for prompt, response in pairs]
    width = -(-max(lengths) // multiple) * multiple
    ids = [[*prompt, *response, *[0] * (width - length)] for (prompt, response), length in zip(pairs, lengths, strict=True)]
    positions = [row * width + len(prompt) - 1 + i for row, (prompt, response) in enumerate(pairs) for i in range(len(response))]
    rows = [row for row, (_, response) in enumerate(pairs) for _ in response]
    targets = [token for _, response in pairs for token in response]
    return PackedBatch(*(torch.tensor(values, dtype=torch.long, device=device) for values in (ids, positions, targets, rows)))


def micro_batches(pairs: Sequence[tuple[TokenIds, TokenIds]], size: int, multiple: int = 1) -> list[PackedBatch]:
    """Packed micro-batches of up to `size` sequences, in order."""
    return [pack(pairs[start : start + size], multiple) for start in range(0, len(pairs), size)]
