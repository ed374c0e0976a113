"""Generation by vLLM in the trainer's process, on weights that the training model hands over tensor by tensor."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state
from torch import Tensor

from megatron_atesd.checkpoint.hf_stream import hf_stream
from megatron_atesd.checkpoint.name_table import EMBEDDING, HEAD
from megatron_atesd.config import RolloutConfig, TrainConfig
from megatron_atesd.data.prompts import PromptRenderer
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.parallel.context import context_place
from megatron_atesd.parallel.cpu_backend import without_stand_in
from megatron_atesd.parallel.groups import gathered
from megatron_atesd.rollout.engine import Dependence, Finished, Response
from megatron_atesd.rollout.handed_over import check_handed_over
from megatron_atesd.rollout.vllm_check import longest_sequence
from megatron_atesd.rollout.vllm_sampler import Draws
from megatron_atesd.rollout.vllm_start import start_vllm

CHECKED, CHECKED_PROMPT, CHECKED_TOKENS = 4, 8, 16


class VllmEngine:
    """The RolloutEngine that is vLLM: the ranks of one tensor-parallel group are one engine, with the whole model divided over them.

    Pipeline stages and context-parallel ranks have an engine each and answer their share of the prompts. It draws the same uniform numbers
    as the training engine. What it does not promise is that a token's logits are the same in another batch or layout: their last digits
    follow from the kernels that vLLM chooses for a batch, and may tip a token. With equal weights, prompts, seeds and settings on the
    same ranks a call returns the same responses again. LoRA adapters reach it merged into the weights.
    """

    depends_on: frozenset[Dependence] = frozenset({"seed", "batch", "layout"})

    def __init__(self, config: TrainConfig, model: HiddenStateGPT, renderer: PromptRenderer, hf_folder: Path) -> None:
        """hf_folder: where config.json and the tokenizer are; no weights are read. Collective over all ranks, once a process."""
        self.model, self.stop_ids = model, list(renderer.stop_ids)
        self.micro_batch_tokens = config.parallel.micro_batch_tokens
        self.room = longest_sequence(config, model.arch)
        self.draws = Draws(model.arch.vocabulary, renderer.id_limit, renderer.stop_ids)
        self.llm = start_vllm(config, model, hf_folder, self.draws)
        self.sleeps = torch.cuda.is_available()
        self._sleep()

    def refresh(self) -> None:
        """See RolloutEngine. Raises TrainingError where vLLM's log-probabilities are not the model's afterwards."""
        self._wake()
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": self._weights()})
        self._check()
        self._sleep()

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: RolloutConfig, finished: Finished | None = None
    ) -> list[Response]:
        """See RolloutEngine and the class for what a response depends on."""
        self._wake()
        responses = self._shared(prompts, seeds, sampling, finished)
        self._sleep()
        return responses

    def _shared(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: RolloutConfig, finished: Finished | None
    ) -> list[Response]:
        """This engine's share of the prompts, then those of the other pipeline stages and context-parallel ranks."""
        (context, contexts), pipeline = context_place(), _pipeline_group()
        place, places = context * pipeline.size() + pipeline.rank(), contexts * pipeline.size()
        mine = self._sample(prompts, seeds, sampling, range(place, len(prompts), places), finished)
        of_all = _together(_together(mine, pipeline), parallel_state.get_context_parallel_group())
        return [of_all[i] for i in range(len(prompts))]

    def _sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], config: RolloutConfig, mine: Sequence[int], finished: Finished | None
    ) -> dict[int, Response]:
        """Responses to `mine` of the prompts, by their place. Collective over tensor parallelism."""
        longest = max((len(prompts[i]) for i in mine), default=0) + config.max_new_tokens
        if longest > self.room:
            raise ValueError(f"a prompt and its response may have {self.room} tokens together, not {longest}")
        engine = self.llm.llm_engine
        self.draws.begin(config)
        engine.reset_prefix_cache()  # of other weights, and a response may not depend on earlier calls
        for i in mine:
            engine.add_request(str(i), {"prompt_token_ids": list(prompts[i])}, self.draws.request(i, seeds[i]))
        responses: dict[int, Response] = {}
        while engine.has_unfinished_requests():
            with without_stand_in():
                outputs = engine.step()
            for output in outputs:
                place = int(output.request_id)
                responses[place] = self._response(place, output.outputs[0])
                if finished is not None:
                    finished(place, responses[place])
        return responses

    def _response(self, place: int, output: Any) -> Response:
        ids, truncated = tuple(output.token_ids), output.finish_reason == "length"
        logprobs = self.draws.by_place.pop(place).logprobs[: len(ids)].tolist()
        return Response(ids, truncated, tuple(logprobs), len(ids) - (not truncated and ids[-1] in self.stop_ids))

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        """vLLM's model has a head of its own, also where the student's is tied (see start_vllm)."""
        for name, tensor in hf_stream(self.model):
            yield name, tensor
            if self.model.arch.tied and name == EMBEDDING:
                yield HEAD, tensor

    def _check(self) -> None:
        """A few responses to prompts of no meaning, whose log-probabilities the training model must share."""
        limit = self.draws.limit
        prompts = np.random.default_rng(0).integers(limit, size=(CHECKED, CHECKED_PROMPT)).tolist()
        plain = RolloutConfig(max_new_tokens=min(CHECKED_TOKENS, self.room - CHECKED_PROMPT), temperature=1.0, top_k=0, top_p=1.0)
        check_handed_over(self.model, prompts, self._shared(prompts, range(CHECKED), plain, None), self.micro_batch_tokens)

    def _wake(self) -> None:
        if self.sleeps:
            self.llm.wake_up()

    def _sleep(self) -> None:
        """Its memory is free for training: weights are kept in host memory, the cache is let go."""
        if self.sleeps:
            self.llm.sleep(level=1)


def _pipeline_group() -> Any:
    return parallel_state.get_pipeline_model_parallel_group()


def _together(mine: dict[int, Response], group: Any) -> dict[int, Response]:
    """The responses of all ranks of `group`. Collective over it."""
    if group.size() == 1:
        return mine
    return {place: response for share in gathered(mine, group) for place, response in share.items()}
