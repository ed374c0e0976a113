"""From logits to token ids: temperature, top-k, top-p, min-p, then one uniform number a token. Vocabulary shards are not gathered."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from megatron_atesd.config import RolloutConfig
from megatron_atesd.model.vocabulary import VocabularyShard
from megatron_atesd.parallel.groups import all_parts

_CANDIDATES = 1024  # of the whole vocabulary that top-p and min-p look at first, where top-k does not say how many there are


def sequence_seed(*parts: int | str) -> int:
    """A 63-bit seed from what identifies a sequence (run seed, place in the stream, problem, sample): its tokens depend on no more."""
    digest = hashlib.blake2b("\x1f".join(str(part) for part in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def uniforms(seed: int, steps: int) -> NDArray[np.float64]:
    """Uniform numbers [steps] in [0, 1), from all bits of `seed` (0 or more) alone."""
    # torch's generator for CPUs takes the low 32 bits of a seed only.
    return np.random.Generator(np.random.PCG64(seed)).random(steps)


@dataclass(frozen=True)
class Sampler:
    """How tokens are drawn from the logits of one rank's vocabulary shard; the draw is the same on every tensor-parallel rank.

    id_limit: ids from it on are never drawn. stop_ids: not drawn in rows that are too short to stop (`sample`).
    """

    shard: VocabularyShard
    sampling: RolloutConfig
    id_limit: int
    stop_ids: Sequence[int]

    def sample(self, logits_TV: Tensor, uniform_T: Tensor, too_short_T: Sequence[bool]) -> tuple[Tensor, Tensor]:
        """Ids [T] (int64) by inverse CDF over the kept tokens, and their log-probabilities [T] (float64), see Response.logprobs.

        logits_TV: fp32, of the shard's valid rows; may be overwritten. temperature 0 takes the most likely token. top_k 0 keeps all; top_p
        keeps the smallest set of tokens, in order of probability among the top-k, whose mass reaches top_p; min_p then drops those less
        probable than that share of the first. Collective over tensor parallelism: one all-gather of the candidates, rarely two.
        """
        logits_TV = logits_TV.div_(self.sampling.temperature or 1.0)
        whole_T = self._log_mass(logits_TV)
        allowed_TV = self._allowed(logits_TV, too_short_T)
        if self._keeps_all():
            return self._draw_of_all(allowed_TV, uniform_T, whole_T)
        among_T = None if self.sampling.top_k else self._log_mass(allowed_TV)
        wanted = self._wanted()
        while True:
            values_TK, ids_TK, complete = self._candidates(allowed_TV, wanted)
            probability_TK, enough_T = self._kept(values_TK, None if complete else among_T)
            if complete or self.sampling.top_k or bool(enough_T.all()):
                break
            wanted *= 8
        chosen_T1 = _inverse_cdf(probability_TK, uniform_T)[:, None]
        return ids_TK.gather(-1, chosen_T1)[:, 0], values_TK.gather(-1, chosen_T1)[:, 0] - whole_T

    def _keeps_all(self) -> bool:
        s = self.sampling
        return s.temperature > 0 and s.top_k == 0 and s.top_p == 1 and s.min_p == 0

    def _wanted(self) -> int:
        return 1 if self.sampling.temperature == 0 else self.sampling.top_k or _CANDIDATES

    def _allowed(self, logits_TV: Tensor, too_short_T: Sequence[bool]) -> Tensor:
        """The shard's logits of ids that may be drawn; others are cut off or -inf."""
        allowed_TV = logits_TV[:, : max(0, self.id_limit - self.shard.start)]
        here = [stop - self.shard.start for stop in self.stop_ids if 0 <= stop - self.shard.start < allowed_TV.shape[1]]
        if here and any(too_short_T):
            rows = torch.tensor([row for row, short in enumerate(too_short_T) if short], device=logits_TV.device)
            allowed_TV[rows[:, None], torch.tensor(here, device=logits_TV.device)] = -math.inf
        return allowed_TV

    def _candidates(self, allowed_TV: Tensor, wanted: int) -> tuple[Tensor, Tensor, bool]:
        """The `wanted` most likely tokens of all shards: tempered logits and ids [T, K], the most likely first, and whether that is all.

        Equal logits, which bf16 has many of, are taken by id: at every layout the same ones in the same order.
        """
        wanted = min(wanted, self.id_limit)
        complete, here = wanted == self.id_limit, min(wanted, allowed_TV.shape[1])
        values_TK, ids_TK = self._of_shard(allowed_TV, here, complete)
        values_TK, ids_TK = values_TK.double(), (ids_TK + self.shard.start).double()
        if self.shard.group is not None:  # shards may have fewer than are wanted, or none
            values_TK, ids_TK = (F.pad(x, (0, wanted - here), value=gap) for x, gap in ((values_TK, -math.inf), (ids_TK, 0.0)))
            values_TK, ids_TK = self._gathered(torch.stack((values_TK, ids_TK))).unbind()
        if not complete:
            by_id_TK = ids_TK.argsort(dim=-1)
            values_TK, ids_TK = values_TK.gather(-1, by_id_TK), ids_TK.gather(-1, by_id_TK)
        order_TK = values_TK.argsort(dim=-1, descending=True, stable=True)[:, :wanted]
        return values_TK.gather(-1, order_TK), ids_TK.gather(-1, order_TK).long(), complete

    def _of_shard(self, allowed_TV: Tensor, here: int, complete: bool) -> tuple[Tensor, Tensor]:
        """The shard's candidates: all in the order of their ids, or its most likely ones in any."""
        if complete:
            return allowed_TV, torch.arange(here, device=allowed_TV.device).expand_as(allowed_TV)
        if self.sampling.top_k or self.sampling.temperature == 0:
            return _most_likely(allowed_TV, here)
        return allowed_TV.topk(here, sorted=False)  # which of those that are as likely as the last does not matter: none is kept

    def _kept(self, values_TK: Tensor, among_T: Tensor | None) -> tuple[Tensor, Tensor]:
        """Probabilities [T, K] of candidates, 0 for those that top-p and min-p drop, and where [T] all as likely as the last are dropped.

        among_T: log-mass of what they are a part of; None: of themselves.
        """
        s = self.sampling
        if s.temperature == 0:
            return torch.ones_like(values_TK), torch.ones_like(values_TK[:, 0], dtype=torch.bool)
        probability_TK = torch.softmax(values_TK, dim=-1) if among_T is None else (values_TK - among_T[:, None]).exp()
        mass_TK = probability_TK.cumsum(dim=-1)
        dropped_TK = (mass_TK - probability_TK >= s.top_p) | (probability_TK < s.min_p * probability_TK[:, :1])
        enough_T = (dropped_TK | (probability_TK != probability_TK[:, -1:])).all(dim=-1)
        return probability_TK.masked_fill(dropped_TK, 0.0), enough_T

    def _draw_of_all(self, allowed_TV: Tensor, uniform_T: Tensor, whole_T: Tensor) -> tuple[Tensor, Tensor]:
        """By inverse CDF in the order of the ids: first the shard, then the token in it."""
        mass_TV = (allowed_TV.double() - whole_T[:, None]).exp_().cumsum(dim=-1)
        shards_TR = self._gathered(mass_TV[:, -1:] if mass_TV.shape[1] else mass_TV.new_zeros(len(mass_TV), 1)).cumsum(dim=-1)
        below_T = uniform_T * shards_TR[:, -1]
        shard_T = (shards_TR[:, :-1] <= below_T[:, None]).sum(dim=-1)
        mine_T = shard_T == (0 if self.shard.group is None else dist.get_rank(self.shard.group))
        before_T = F.pad(shards_TR, (1, 0)).gather(-1, shard_T[:, None])[:, 0]
        place_T = torch.searchsorted(mass_TV, (below_T - before_T)[:, None], right=True)[:, 0].clamp_max(max(0, mass_TV.shape[1] - 1))
        drawn_2T = torch.zeros(2, len(mass_TV), dtype=torch.float64, device=mass_TV.device)
        if bool(mine_T.any()):
            value_T = allowed_TV.gather(-1, place_T[:, None])[:, 0].double() - whole_T
            drawn_2T = torch.stack((place_T.double() + self.shard.start, value_T)).where(mine_T, 0.0)
        if self.shard.group is not None:
            dist.all_reduce(drawn_2T, group=self.shard.group)
        return drawn_2T[0].long(), drawn_2T[1]

    def _log_mass(self, logits_TV: Tensor) -> Tensor:
        """log Σ exp [T] over all shards, float64."""
        return self._gathered(torch.logsumexp(logits_TV, dim=-1)[:, None].double()).logsumexp(dim=-1)

    def _gathered(self, part: Tensor) -> Tensor:
        """The shards' parts side by side along the last dimension."""
        if self.shard.group is None:
            return part
        return torch.cat(all_parts(part, self.shard.group), dim=-1)


def _most_likely(logits_TV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row and their places, of equal ones the first; in any order."""
    if count == logits_TV.shape[1]:
        return logits_TV.topk(count, sorted=False)
    values_TK, places_TK = logits_TV.topk(count + 1)
    # torch takes any of those that are as large as the last.
    rows = (values_TK[:, count] == values_TK[:, count - 1]).nonzero()[:, 0]
    values_TK, places_TK = values_TK[:, :count], places_TK[:, :count]
    if len(rows):
        logits_RV = logits_TV[rows]
        least_R1 = values_TK[rows, -1:]
        larger_RV, equal_RV = ~(logits_RV <= least_R1), logits_RV == least_R1  # NaN is the largest
        first_RV = equal_RV.cumsum(dim=-1, dtype=torch.int32) <= count - larger_RV.sum(dim=-1, keepdim=True)
        places_TK[rows] = (larger_RV | equal_RV & first_RV).nonzero()[:, 1].view(-1, count)
        values_TK[rows] = logits_RV.gather(-1, places_TK[rows])
    return values_TK, places_TK


def _inverse_cdf(probability_TK: Tensor, uniform_T: Tensor) -> Tensor:
    """Places [T] in rows of probabilities that need not sum to 1."""
    mass_TK = probability_TK.cumsum(dim=-1)
    chosen_T = (mass_TK <= uniform_T[:, None] * mass_TK[:, -1:]).sum(dim=-1)
    last_T = (probability_TK > 0).sum(dim=-1) - 1
    # Logits that are NaN give no token a probability: any token will do, the loss will be NaN and the update skipped.
    return torch.minimum(chosen_T, last_T).clamp_min(0)
