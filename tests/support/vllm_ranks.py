"""What the ranks of the vLLM tests do: an engine on a student that trains, beside the training engine on the same student."""

import gc
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.config import EngineConfig, ModelConfig, ParallelConfig, PromptConfig, RolloutConfig, TrainConfig
from megatron_atesd.data.prompts import PromptRenderer
from megatron_atesd.data.tokenizer import load_tokenizer
from megatron_atesd.errors import TrainingError
from megatron_atesd.model.gpt import HiddenStateGPT, build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.model.vocabulary import whole_logits
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.rollout.engine import Response
from megatron_atesd.rollout.engines import build_engine
from tests.support.student_session import session

VOCABULARY, KNOWN, STOP = 61, 53, 2  # embedding rows, ids of the tokenizer, the id that ends a response
NEW_TOKENS = 16
SAMPLINGS: dict[str, RolloutConfig] = {
    "greedy": RolloutConfig(NEW_TOKENS, temperature=0.0),
    "whole": RolloutConfig(NEW_TOKENS, temperature=1.3, top_k=0, top_p=1.0),
    "cut": RolloutConfig(NEW_TOKENS, temperature=0.7, top_k=8, top_p=0.9),
    "all cuts": RolloutConfig(NEW_TOKENS, temperature=0.7, top_k=8, top_p=0.9, min_p=0.1),
    "long": RolloutConfig(NEW_TOKENS, min_new_tokens=6, temperature=1.3, top_k=0, top_p=1.0),
}
FIRST_TOKENS = 1500
FIRSTS: dict[str, RolloutConfig] = {
    "temperature 0.7": RolloutConfig(1, temperature=0.7, top_k=0, top_p=1.0),
    "temperature 1.3": RolloutConfig(1, temperature=1.3, top_k=0, top_p=1.0),
    "top-k": RolloutConfig(1, temperature=2.0, top_k=5, top_p=1.0),
    "top-p": RolloutConfig(1, temperature=2.0, top_k=0, top_p=0.8),
    "min-p": RolloutConfig(1, temperature=2.0, top_k=0, top_p=1.0, min_p=0.1),
    "all three": RolloutConfig(1, temperature=3.0, top_k=12, top_p=0.95, min_p=0.1),
}


def save_models(folder: Path, tied: bool) -> Path:
    """student/ and teacher/ with heads of a size that vLLM has on a CPU; the vocabulary is odd: TP pads it."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": tied}
    shape = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 256}
    for seed, role in enumerate(("student", "teacher")):
        torch.manual_seed(seed)
        model: Any = Qwen3ForCausalLM(Qwen3Config(**shape, **heads))
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        model.save_pretrained(folder / role)
    return folder


def prompts() -> list[list[int]]:
    """64 of mixed length."""
    drawn = np.random.default_rng(1)
    return [drawn.integers(KNOWN, size=length).tolist() for length in drawn.integers(1, 24, size=64)]


def seeds() -> list[int]:
    """Of 63 bits, as a run's are."""
    return [(1 << 62) + i for i in range(64)]


def renderer_of(stop: int) -> PromptRenderer:
    """What an engine asks of it, where there are no texts."""
    return cast("PromptRenderer", SimpleNamespace(stop_ids=(stop,), id_limit=KNOWN, decode=None))


def run_config(tensor: int, dtype: str = "fp32") -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(dtype=cast("Any", dtype)),
        parallel=ParallelConfig(tensor=tensor),
        prompt=PromptConfig(max_length=24),
        rollout=RolloutConfig(NEW_TOKENS),
        engine=EngineConfig("vllm"),
    )


def model_logprobs(model: HiddenStateGPT, prompt: Sequence[int], response: Sequence[int], temperature: float) -> torch.Tensor:
    """Log-probabilities [T, V] before each response token, by one pass over one sequence: the obvious reference."""
    with torch.no_grad():
        hidden_TH = model(torch.tensor([[*prompt, *response]]))[0, len(prompt) - 1 : -1]
        return (whole_logits(model, hidden_TH) / temperature).log_softmax(dim=-1)


def engine_facts(folder: Path, tensor: int) -> dict[str, Any]:
    """Responses of both engines before and after updates, and what else is asked of vLLM, on one rank."""
    with parallel_session(tensor):
        student = session(folder, tensor)
        config, renderer = run_config(tensor), renderer_of(STOP)
        process = process_state()
        engine = build_engine(config, student.model, renderer, folder / "student")
        engine.refresh()
        changed = [name for name, value in process_state().items() if value != process[name]]
        ours = build_engine(replace(config, engine=EngineConfig()), student.model, renderer, folder / "student")
        asked, told = prompts(), []
        before = engine.generate(asked, seeds(), SAMPLINGS["greedy"]), ours.generate(asked, seeds(), SAMPLINGS["greedy"])
        student.train(2)
        engine.refresh()
        theirs = {name: engine.generate(asked, seeds(), sampling) for name, sampling in SAMPLINGS.items()}
        again = {name: engine.generate(asked, seeds(), sampling) for name, sampling in SAMPLINGS.items()}
        engine.generate(asked, seeds(), SAMPLINGS["whole"], lambda place, response: told.append((place, response)))
        first = {name: engine.generate([asked[0]] * FIRST_TOKENS, range(FIRST_TOKENS), sampling) for name, sampling in FIRSTS.items()}
        logits_V = model_logprobs(student.model, asked[0], [0], 1.0)[0]
        facts = {
            "changed": changed,
            "before": before,
            "theirs": theirs,
            "ours": {name: ours.generate(asked, seeds(), SAMPLINGS[name]) for name in ("greedy", "whole", "cut")},
            "again": again,
            "told": dict(told),
            "gaps": {name: gaps(student.model, asked, theirs[name], SAMPLINGS[name].temperature or 1.0) for name in SAMPLINGS},
            "beyond": sum(
                int((model_logprobs(student.model, p, r.ids, 1.0).argmax(dim=-1) >= KNOWN).sum())
                for p, r in zip(asked, theirs["greedy"], strict=True)
            ),
            "first": {name: np.bincount([r.ids[0] for r in drawn], minlength=VOCABULARY).tolist() for name, drawn in first.items()},
            "expected": {name: reference_distribution(logits_V, sampling) for name, sampling in FIRSTS.items()},
        }
        return facts | {"refusal": refusal_of_a_changed_head(engine)}


def gaps(model: HiddenStateGPT, asked: Sequence[Sequence[int]], responses: Sequence[Response], temperature: float) -> float:
    """Largest |engine − model| over all tokens, nats."""
    found = []
    for prompt, response in zip(asked, responses, strict=True):
        ids_T1 = torch.tensor(response.ids)[:, None]
        expected_T = model_logprobs(model, prompt, response.ids, temperature).gather(-1, ids_T1)[:, 0]
        found.append(float((expected_T - torch.tensor(response.logprobs)).abs().max()))
    return max(found)


def reference_distribution(logits_V: torch.Tensor, sampling: RolloutConfig) -> list[float]:
    """The distribution of a token, cut one entry after the other."""
    order = sorted(range(KNOWN), key=lambda token: -float(logits_V[token]))[: sampling.top_k or None]
    weights = {token: float((logits_V[token].double() / sampling.temperature).exp()) for token in order}
    total, mass, kept = sum(weights.values()), 0.0, dict[int, float]()
    for token in order:
        if mass >= sampling.top_p * total or weights[token] < weights[order[0]] * sampling.min_p:
            break
        kept[token], mass = weights[token], mass + weights[token]
    return [kept.get(token, 0.0) / mass for token in range(VOCABULARY)]


def refusal_of_a_changed_head(engine: Any) -> str:
    """What the engine says when the head did not arrive as it is."""
    whole = engine._weights
    engine._weights = lambda: ((name, tensor * 0.5 if name == "lm_head.weight" else tensor) for name, tensor in whole())
    try:
        engine.refresh()
    except TrainingError as error:
        return str(error)
    return ""


def process_state() -> dict[str, Any]:
    """What vLLM must leave as it was."""
    return {
        "environment": {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")},
        "set_num_threads": torch.set_num_threads is _SET_NUM_THREADS,
        "threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
        "torch's random state": torch.get_rng_state().tolist(),
        "numpy's": str(np.random.get_state()),
        "Python's": random.getstate(),
        "frozen objects": gc.get_freeze_count(),
    }


_SET_NUM_THREADS = torch.set_num_threads


def crowded(folder: Path, tokens: int) -> tuple[list[Response], list[Response]]:
    """Both engines' responses of `tokens` tokens, which nothing stops, 24 at a time: vLLM has five blocks of 128 tokens for its cache."""
    with parallel_session():
        student = session(folder)
        sampling = RolloutConfig(tokens, temperature=1.0, top_k=8, top_p=1.0)
        block = 128 * 2 * 2 * 2 * 32 * 4  # tokens, layers, keys and values, query groups, their size, bytes
        config = replace(run_config(1), rollout=sampling, engine=EngineConfig("vllm", batch=24, cache_gib=6 * block / 2**30))
        renderer = renderer_of(KNOWN)
        engine = build_engine(config, student.model, renderer, folder / "student")
        engine.refresh()
        ours = build_engine(replace(config, engine=EngineConfig()), student.model, renderer, folder / "student")
        theirs, expected = (each.generate(prompts()[:24], seeds()[:24], sampling) for each in (engine, ours))
        return theirs, expected


def half_precision_gap(folder: Path) -> tuple[float, float]:
    """Mean and largest |vLLM − model| of a bf16 student's tokens, nats; refresh has compared them too."""
    with parallel_session():
        student = session(folder, dtype="bf16")
        renderer = renderer_of(STOP)
        engine = build_engine(run_config(1, "bf16"), student.model, renderer, folder / "student")
        engine.refresh()
        found = []
        for prompt, response in zip(prompts(), engine.generate(prompts(), seeds(), SAMPLINGS["whole"]), strict=True):
            expected_T = model_logprobs(student.model, prompt, response.ids, 1.3).gather(-1, torch.tensor(response.ids)[:, None])[:, 0]
            found.append((expected_T - torch.tensor(response.logprobs)).abs())
        gap_T = torch.cat(found)
        return float(gap_T.mean()), float(gap_T.max())


def stopped_by_text(folder: Path, stop: str) -> list[tuple[Response, str, str]]:
    """Responses of the model in `folder` that a text ends, their text, and it without their last token."""
    arch = read_architecture(folder)
    config = replace(run_config(1), rollout=RolloutConfig(NEW_TOKENS, temperature=1.0, top_k=0, top_p=1.0, stop=[stop]))
    renderer = PromptRenderer(load_tokenizer(folder, arch.vocabulary), config.prompt)
    with parallel_session():
        model = build_model(arch, transformer_config(arch, 1, 1, False, "fp32"))
        engine = build_engine(config, model, renderer, folder)
        engine.refresh()
        responses = engine.generate([[3, 4, 5]] * 64, range(64), config.rollout)
        return [(r, renderer.decode(r.ids), renderer.decode(r.ids[:-1])) for r in responses]


def told_by_stages(folder: Path) -> tuple[dict[int, Response], list[Response]]:
    """What this rank, one of two pipeline stages, is told while responses are made, and all of them."""
    arch = read_architecture(folder / "student")
    config = replace(run_config(1), parallel=ParallelConfig(pipeline=2))
    with parallel_session(pipeline=2):
        model = build_model(arch, transformer_config(arch, 1, 2, False, "fp32"))
        load_hf_weights(model, folder / "student")
        engine = build_engine(config, model, renderer_of(STOP), folder / "student")
        engine.refresh()
        told: dict[int, Response] = {}
        responses = engine.generate(prompts(), seeds(), SAMPLINGS["whole"], told.__setitem__)
        return told, responses
