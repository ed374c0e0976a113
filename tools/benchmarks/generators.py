"""Who generates: this project's engines, through the interface of all engines, and transformers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.flops import DTYPES
from benchmarks.rollout_task import RolloutTask
from benchmarks.watch import PeakMemory
from benchmarks.workload import END, PAD
from megatron_atesd.config import EngineConfig, ModelConfig, ParallelConfig, PromptConfig, RolloutConfig, TrainConfig


@dataclass(frozen=True)
class Generated:
    """tokens: of all responses. slots: places that were computed, summed over the decoding steps; None where the engine does not say.

    cache_bytes, token_bytes: of one process, the largest cache and the most that the keys and values of existing tokens needed; None too.
    """

    tokens: int
    slots: int | None = None
    cache_bytes: int | None = None
    token_bytes: int | None = None


Generate = Callable[[Sequence[Sequence[int]], RolloutConfig], Generated]


@contextmanager
def engine(task: RolloutTask) -> Iterator[tuple[Generate, PeakMemory]]:
    """An engine of this project, and the memory since the weights were there."""
    from transformers import PreTrainedTokenizerFast

    from megatron_atesd.checkpoint.hf_weights import load_hf_weights
    from megatron_atesd.data.prompts import PromptRenderer
    from megatron_atesd.model.gpt import build_model
    from megatron_atesd.model.hf_config import read_architecture
    from megatron_atesd.model.megatron_config import megatron_settings
    from megatron_atesd.parallel.session import session_of
    from megatron_atesd.rollout.engines import build_engine

    folder, config = Path(task.model), config_of(task)
    with session_of(config.parallel):
        architecture = read_architecture(folder)
        model = build_model(architecture, megatron_settings(config, architecture))
        load_hf_weights(model, folder)
        renderer = PromptRenderer(PreTrainedTokenizerFast.from_pretrained(folder), PromptConfig())
        memory = PeakMemory(task.device)
        built = build_engine(config, model, renderer, folder)
        built.refresh()

        def generate(prompts: Sequence[Sequence[int]], sampling: RolloutConfig) -> Generated:
            responses = built.generate(prompts, range(len(prompts)), sampling)
            last: Any = getattr(built, "last", None)
            figures = (last.slots, last.cache_peak_bytes, last.token_peak_bytes) if last else ()
            return Generated(sum(len(response.ids) for response in responses), *figures)

        yield generate, memory


def config_of(task: RolloutTask) -> TrainConfig:
    """The settings of a run that would sample so."""
    dtype: Any = task.dtype
    name: Any = task.engine
    return TrainConfig(
        model=ModelConfig(path=task.model, dtype=dtype),
        parallel=ParallelConfig(tensor=task.tensor),
        rollout=task.sampling,
        engine=EngineConfig(name=name, batch=task.batch),
    )


@contextmanager
def transformers(task: RolloutTask) -> Iterator[tuple[Generate, PeakMemory]]:
    """transformers' generate on one batch after the other, padded on the left; each batch waits for its longest response."""
    from transformers import Qwen3ForCausalLM

    model: Any = Qwen3ForCausalLM.from_pretrained(task.model, dtype=DTYPES[task.dtype], attn_implementation="sdpa")
    model.to(task.device).eval()

    def generate(prompts: Sequence[Sequence[int]], sampling: RolloutConfig) -> Generated:
        torch.manual_seed(1)
        lengths = [_batch(model, prompts[start : start + task.batch], sampling) for start in range(0, len(prompts), task.batch)]
        return Generated(sum(map(sum, lengths)), sum(len(batch) * max(batch) for batch in lengths))

    yield generate, PeakMemory(task.device)


def _batch(model: Any, prompts: Sequence[Sequence[int]], sampling: RolloutConfig) -> list[int]:
    """Tokens of each response, the stop token among them."""
    width = max(map(len, prompts))
    padding = [width - len(prompt) for prompt in prompts]
    ids_BS = torch.tensor([[PAD] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)], device=model.device)
    mask_BS = torch.tensor([[0] * pad + [1] * (width - pad) for pad in padding], device=model.device)
    limits: dict[str, Any] = {"max_new_tokens": sampling.max_new_tokens, "eos_token_id": END, "pad_token_id": PAD}
    kept = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    with torch.inference_mode():
        rows = model.generate(ids_BS, attention_mask=mask_BS, do_sample=True, **kept, **limits)[:, width:].tolist()
    return [row.index(END) + 1 if END in row else len(row) for row in rows]


GENERATORS = {"training": engine, "vllm": engine, "transformers": transformers}
