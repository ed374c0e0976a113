"""From logits to token ids: temperature, then top-k, then top-p, then one uniform number a token."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def sequence_seed(*parts: int | str) -> int:
    """A 63-bit seed from what identifies a sequence (run seed, place in the stream, problem, sample): its tokens depend on no more."""
    digest = hashlib.blake2b("\x1f".join(str(part) for part in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def uniforms(seeds: Sequence[int], steps: int) -> Tensor:
    """Uniform numbers [B, steps] in [0, 1), float64 on the CPU, row b from all bits of `seeds[b]` (0 or more) alone."""
    # torch's generator for CPUs takes the low 32 bits of a seed only.
    return torch.from_numpy(np.stack([np.random.Generator(np.random.PCG64(seed)).random(steps) for seed in seeds]))


def sample_tokens(logits_BV: Tensor, uniform_B: Tensor, temperature: float, top_p: float, top_k: int) -> Tensor:
    """Token ids [B] by inverse CDF over the kept tokens in order of probability.

    temperature 0 takes the most likely token. top_k 0 keeps all. top_p keeps the smallest set of tokens, taken in order
    of probability among the top-k, whose mass reaches top_p.
    """
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    kept = top_k if 0 < top_k < logits_BV.shape[-1] else logits_BV.shape[-1]
    values_BK, ids_BK = logits_BV.topk(kept, dim=-1)
    probs_BK = torch.softmax(values_BK.double() / temperature, dim=-1)
    mass_BK = probs_BK.cumsum(dim=-1)
    probs_BK = probs_BK.masked_fill(mass_BK - probs_BK >= top_p, 0.0)
    mass_BK = probs_BK.cumsum(dim=-1)
    chosen_B = (mass_BK <= uniform_B[:, None] * mass_BK[:, -1:]).sum(dim=-1)
    last_B = (probs_BK > 0).sum(dim=-1) - 1
    # Logits that are NaN give no token a probability: any token will do, the loss will be NaN and the update skipped.
    return ids_BK.gather(-1, torch.minimum(chosen_B, last_B).clamp_min(0)[:, None])[:, 0]
