"""Packed sequences, [1, T] one after the other, as megatron.core and Transformer Engine are told of them."""

from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_atesd.parallel.context import Bounds


class PackedSequences(PackedSeqParams):
    """megatron.core's PackedSeqParams of sequences between `bounds`, on the host: its rotary embedding reads them there, layer by layer.

    A sequence's padding counts as part of it: it comes last, so that causal attention hides it from the tokens that matter, and the
    kernels need not know.
    """

    def __init__(self, bounds: Bounds) -> None:
        super().__init__(**_fields(bounds, torch.device("cpu")))
        self.bounds = bounds

    @cached_property
    def on_device(self) -> PackedSeqParams:
        """The same where attention kernels read it."""
        return PackedSeqParams(**_fields(self.bounds, torch.device(torch.cuda.current_device())))


def _fields(bounds: Bounds, device: torch.device) -> dict[str, Any]:
    """The lengths with padding are the same object: Transformer Engine sees by that that nothing lies between sequences."""
    starts, longest = torch.tensor(bounds, dtype=torch.int32, device=device), max(stop - start for start, stop in pairwise(bounds))
    names = ("cu_seqlens_q", "cu_seqlens_kv", "cu_seqlens_q_padded", "cu_seqlens_kv_padded")
    return {"qkv_format": "thd", "max_seqlen_q": longest, "max_seqlen_kv": longest, **dict.fromkeys(names, starts)}
