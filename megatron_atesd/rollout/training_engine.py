"""Generation with the training model itself: same weights, a KV cache, continuous batching, any TP × PP."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_atesd.config import EngineConfig, Precision, RolloutConfig
from megatron_atesd.model.decoding import Decoder
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.kv_cache import CacheLedger
from megatron_atesd.model.modes import evaluation_mode
from megatron_atesd.model.vocabulary import shard_logits, vocabulary_shard
from megatron_atesd.parallel.context import context_place
from megatron_atesd.parallel.cpu_backend import without_stand_in
from megatron_atesd.parallel.groups import gathered
from megatron_atesd.rollout.cache_room import cache_tokens, layer_bytes, row_groups
from megatron_atesd.rollout.engine import Dependence, Finished, Response
from megatron_atesd.rollout.rows import Decode, Queue, Row
from megatron_atesd.rollout.sampling import Sampler
from megatron_atesd.rollout.stream import GenerationStats, Stream


@dataclass
class TrainingEngine:
    """The RolloutEngine of the model that trains: it samples from its very parameters.

    A response is the same at every batch, order and layout, up to the rounding of sums of floating-point numbers.
    id_limit: ids from it on are never sampled; models have more embedding rows than their tokenizer has ids.
    precision: of its passes (None: model.dtype). decode: text of ids, needed for stop texts. last: figures of the last call.
    """

    model: HiddenStateGPT
    stop_ids: Sequence[int]
    id_limit: int | None = None
    precision: Precision | None = None
    config: EngineConfig = field(default_factory=EngineConfig)
    decode: Decode | None = None
    depends_on: frozenset[Dependence] = frozenset({"seed"})
    last: GenerationStats = field(default_factory=GenerationStats)

    def refresh(self) -> None:
        """Nothing to do: there is one set of weights."""

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: RolloutConfig, finished: Finished | None = None
    ) -> list[Response]:
        """See RolloutEngine. Context-parallel ranks hold the same weights: each answers its share of the prompts.

        Raises ConfigError when engine.cache_gib cannot hold the longest sequence.
        """
        rank, ranks = context_place()
        finished = finished if parallel_state.get_pipeline_model_parallel_rank() == 0 else None  # all stages have every response
        rows = [Row(i, prompts[i], seeds[i]) for i in range(rank, len(prompts), ranks)]
        queue = Queue(sampling, frozenset(self.stop_ids), deque(rows), self.decode, finished)
        model = self.model
        with torch.no_grad(), evaluation_mode(model), model.without_sequence_parallel(), model.computing_in(self.precision):
            model.weights_changed()
            generation = _Generation(self, queue, max(map(len, prompts), default=0))
            with without_stand_in():
                self.last = generation.run()
        done = queue.done
        shares = gathered(done, parallel_state.get_context_parallel_group()) if ranks > 1 else [done]
        return [shares[i % ranks][i] for i in range(len(prompts))]


class _Generation:
    """One call on one rank: as many streams as there are pipeline stages, so that no stage waits for the last one's tokens.

    Every rank of the model makes the same decisions, from the same tokens.
    """

    def __init__(self, engine: TrainingEngine, queue: Queue, longest_prompt: int) -> None:
        """longest_prompt: of the whole call, also where other context-parallel ranks have it: all of them refuse a cache, or none does."""
        self.queue, self.stats, self.ledger = queue, GenerationStats(), CacheLedger()
        self.decoder, model = Decoder(engine.model), engine.model
        shard = vocabulary_shard(model)
        limit = min(model.arch.vocabulary, engine.id_limit or model.arch.vocabulary)
        self.sampler = Sampler(shard, queue.sampling, limit, engine.stop_ids)
        self.token_bytes = layer_bytes(model.arch, model.config) * self.decoder.layers
        count, places = row_groups(model.config), engine.config.batch or len(queue.waiting)
        longest, what = longest_prompt + queue.sampling.max_new_tokens, "the longest prompt and rollout.max_new_tokens"
        budget = cache_tokens(engine.config, model.arch, model.config, longest, what)
        each = [places // count + (i < places % count) for i in range(min(count, max(1, places)))]
        self.streams = [Stream(self.decoder, queue, size, budget, self.ledger) for size in each]

    def run(self) -> GenerationStats:
        """All responses of the queue."""
        while self.queue.waiting or any(stream.live for stream in self.streams):
            for stream in self.streams:
                if stream.sampled:
                    self._settle(stream)
                if stream.live or self.queue.waiting:
                    self._pass(stream)
        self.decoder.mailbox.wait()
        self.stats.cache_peak_bytes = self.ledger.peak
        return self.stats

    def _pass(self, stream: Stream) -> None:
        hidden_TH = stream.forward()
        rows = stream.sampled
        self.stats.steps += 1
        self.stats.slots += max(len(rows), stream.places if self.queue.waiting else 0)
        self.stats.tokens += sum(row is not None for row in rows)
        stream.message = torch.empty(2, len(rows), dtype=torch.float64, device=torch.cuda.current_device())
        if hidden_TH is not None:
            stream.message = self._draw(hidden_TH, rows)
            for stage in _other_stages():
                self.decoder.mailbox.send(stream.message, stage)

    def _settle(self, stream: Stream) -> None:
        if not self.decoder.model.post_process:
            self.decoder.mailbox.receive(stream.message, parallel_state.get_pipeline_model_parallel_last_rank())
        ids, logprobs = stream.message.tolist()
        self.stats.token_peak_bytes = max(
            self.stats.token_peak_bytes, self.token_bytes * sum(r.length for s in self.streams for r in s.live)
        )
        stream.settle([int(i) for i in ids], logprobs)

    def _draw(self, hidden_TH: Tensor, rows: Sequence[Row | None]) -> Tensor:
        """Ids and log-probabilities [2, T] of the next tokens; float64 holds any id."""
        sampling = self.queue.sampling
        uniform_T = torch.tensor([row.next_uniform(sampling.max_new_tokens) if row else 0.0 for row in rows], dtype=torch.float64)
        too_short = [row is not None and len(row.ids) < sampling.min_new_tokens for row in rows]
        logits_TV = shard_logits(self.decoder.model, self.decoder.final_norm(hidden_TH))
        ids_T, logprobs_T = self.sampler.sample(logits_TV, uniform_T.to(hidden_TH.device), too_short)
        return torch.stack((ids_T.double(), logprobs_T))


def _other_stages() -> list[int]:
    """Global ranks of the pipeline's stages but the last."""
    group: Any = parallel_state.get_pipeline_model_parallel_group()
    return dist.get_process_group_ranks(group)[:-1]
