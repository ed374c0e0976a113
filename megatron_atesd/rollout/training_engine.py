"""Batched generation with the training model itself: same weights, same code, a KV cache, any TP × PP."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_atesd.config import Precision, RolloutConfig
from megatron_atesd.model.fp8 import token_multiple
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.kv_cache import KVCache
from megatron_atesd.model.modes import evaluation_mode
from megatron_atesd.model.vocabulary import whole_logits
from megatron_atesd.parallel.context import context_place
from megatron_atesd.parallel.groups import broadcast_from_last_stage, broadcast_over_tensor_ranks, gathered
from megatron_atesd.rollout.engine import Dependence, Finished, Response
from megatron_atesd.rollout.sampling import sample_tokens, uniforms

_FILLER = -1


@dataclass(frozen=True)
class TrainingEngine:
    """The RolloutEngine of the model that trains: it samples from its very parameters.

    id_limit: ids from it on are never sampled; models have more embedding rows than their tokenizer has ids.
    precision: of its passes (None: model.dtype).
    """

    model: HiddenStateGPT
    stop_ids: Sequence[int]
    id_limit: int | None = None
    precision: Precision | None = None
    depends_on: frozenset[Dependence] = frozenset({"seed"})

    def refresh(self) -> None:
        """Nothing to do: there is one set of weights."""

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: RolloutConfig, finished: Finished | None = None
    ) -> list[Response]:
        """See RolloutEngine. A response is the same at every batch, order and layout."""
        with self.model.computing_in(self.precision):
            return generate(self.model, prompts, seeds, self.stop_ids, sampling, self.id_limit)


def generate(
    model: HiddenStateGPT,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    stop_ids: Sequence[int],
    config: RolloutConfig,
    id_limit: int | None = None,
) -> list[Response]:
    """One response a prompt, in order; called with equal arguments on every rank of a data-parallel rank's model, and equal there.

    Context-parallel ranks hold the same weights: each answers its share of the prompts.
    A response depends on its own prompt and seed, not on the others of its batch. See TrainingEngine for `id_limit`.
    """
    rank, ranks = context_place()
    mine, my_seeds = prompts[rank::ranks], seeds[rank::ranks]
    size = max(1, len(mine))
    responses: list[Response] = []
    model.weights_changed()
    with torch.no_grad(), evaluation_mode(model), model.without_sequence_parallel():
        for start in range(0, len(mine), size):
            part = slice(start, start + size)
            responses += _Batch(model, mine[part], my_seeds[part], stop_ids, config, id_limit).run()
    return _of_all_ranks(responses, ranks, len(prompts))


def _of_all_ranks(mine: list[Response], ranks: int, count: int) -> list[Response]:
    """All `count` responses, in the order of their prompts. Collective over context parallelism."""
    shares = gathered(mine, parallel_state.get_context_parallel_group()) if ranks > 1 else [mine]
    return [shares[i % ranks][i // ranks] for i in range(count)]


class _Batch:
    """One batch on its way, whose rows shrink as responses finish.

    rows: the prompt of each row; -1 for rows that nobody reads and that only make the multiple that FP8 needs: at the start copies of the
    first prompt, later finished ones.
    """

    def __init__(
        self,
        model: HiddenStateGPT,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        stop_ids: Sequence[int],
        config: RolloutConfig,
        id_limit: int | None,
    ) -> None:
        self.model, self.config, self.stop_ids, self.id_limit = model, config, set(stop_ids), id_limit
        self.device = torch.device(torch.cuda.current_device())
        self.multiple = token_multiple(model.config)
        fillers = -len(prompts) % self.multiple
        self.prompts = [*prompts, *[prompts[0]] * fillers]
        self.uniform_BK = uniforms(seeds, config.max_new_tokens)
        self.written: list[list[int]] = [[] for _ in prompts]
        self.rows = [*range(len(prompts)), *[_FILLER] * fillers]

    def run(self) -> list[Response]:
        lengths_B = torch.tensor([len(prompt) for prompt in self.prompts], device=self.device)
        longest = int(lengths_B.max())
        padded = [[*prompt, *[0] * (longest - len(prompt))] for prompt in self.prompts]
        with self.model.slot.use(KVCache(lengths_B, longest + self.config.max_new_tokens)) as cache:
            hidden = _forward_stages(self.model, torch.tensor(padded, device=self.device))
            hidden_BH = None if hidden is None else hidden[torch.arange(len(lengths_B), device=self.device), lengths_B - 1]
            for step in range(self.config.max_new_tokens):
                cache.advance()
                ids_B = self._next_ids(hidden_BH, step)
                live = self._record(ids_B.tolist())
                if not live or step + 1 == self.config.max_new_tokens:
                    break
                kept = self._fill(live)
                if len(kept) < len(ids_B):
                    rows = torch.tensor(kept, device=self.device)
                    cache.keep(rows)
                    ids_B = ids_B[rows]
                hidden = _forward_stages(self.model, ids_B[:, None])
                hidden_BH = None if hidden is None else hidden[:, 0]
        return [Response(tuple(ids), ids[-1] not in self.stop_ids, (0.0,) * len(ids), len(ids) - (ids[-1] in self.stop_ids)) for ids in self.written]

    def _next_ids(self, hidden_BH: Tensor | None, step: int) -> Tensor:
        ids_B = torch.zeros(len(self.rows), dtype=torch.long, device=self.device)
        if hidden_BH is not None:
            logits_BV = whole_logits(self.model, hidden_BH)[:, : self.id_limit]
            uniform_B = self.uniform_BK[self.rows, step].to(self.device)
            ids_B = sample_tokens(logits_BV, uniform_B, self.config.temperature, self.config.top_p, self.config.top_k)
            broadcast_over_tensor_ranks(ids_B)  # they sampled alike, but a GPU's sums may differ in their last bit
        broadcast_from_last_stage(ids_B)
        return ids_B

    def _record(self, ids: Sequence[int]) -> list[int]:
        """Append one token a row that is read; returns the positions in the batch of those that go on."""
        live = []
        for position, (row, token) in enumerate(zip(self.rows, ids, strict=True)):
            if row != _FILLER:
                self.written[row].append(token)
                live += [position] if token not in self.stop_ids else []
        return live

    def _fill(self, live: Sequence[int]) -> list[int]:
        """Positions of the rows to keep, in order: `live` and as many others as make the multiple; self.rows is of these."""
        others = sorted(set(range(len(self.rows))).difference(live))[: -len(live) % self.multiple]
        kept = sorted([*live, *others])
        self.rows = [_FILLER if position in others else self.rows[position] for position in kept]
        return kept


def _forward_stages(model: HiddenStateGPT, ids_BS: Tensor) -> Tensor | None:
    """Hidden states [B, S, H] on the last pipeline stage, None on the others; activations pass chunk by chunk, round the stages."""
    batch, steps = ids_BS.shape
    for chunk in model.chunks:
        if not chunk.pre_process:
            received = torch.empty(steps, batch, model.arch.hidden, dtype=model.config.params_dtype, device=ids_BS.device)
            dist.recv(received, parallel_state.get_pipeline_model_parallel_prev_rank())
            chunk.set_input_tensor(received)  # pyright: ignore[reportArgumentType]
        out = chunk(ids_BS)
        if chunk.post_process:
            return out
        dist.send(out.contiguous(), parallel_state.get_pipeline_model_parallel_next_rank())
    return None
