"""The most likely tokens after 200 prompts of 1 to 40 tokens, as transformers and as the training engine find them."""

from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.config import EngineConfig, RolloutConfig
from megatron_atesd.model.gpt import build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.rollout.training_engine import TrainingEngine

VOCABULARY, STOP, TOKENS = 97, 77, 24
LENGTHS = [1 + i % 40 for i in range(200)]


def prompts() -> list[list[int]]:
    random = torch.Generator().manual_seed(5)
    return [torch.randint(VOCABULARY, (length,), generator=random).tolist() for length in LENGTHS]


def save_model(folder: Path) -> None:
    torch.manual_seed(0)
    shape = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, tie_word_embeddings=True, max_position_embeddings=64, eos_token_id=STOP, pad_token_id=STOP,
    )  # fmt: skip
    model = Qwen3ForCausalLM(shape)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)


def of_transformers(folder: Path) -> list[tuple[int, ...]]:
    """Prompts of one length at a time, so that nothing is padded."""
    model: Any = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found: dict[int, tuple[int, ...]] = {}
    for length in sorted(set(LENGTHS)):
        places = [place for place, other in enumerate(LENGTHS) if other == length]
        ids_BS = torch.tensor([prompts()[place] for place in places])
        written_BS = model.generate(ids_BS, attention_mask=torch.ones_like(ids_BS), max_new_tokens=TOKENS, do_sample=False)
        for place, row in zip(places, written_BS[:, length:].tolist(), strict=True):
            found[place] = tuple(row[: row.index(STOP) + 1] if STOP in row else row)
    return [found[place] for place in range(len(LENGTHS))]


def of_the_training_engine(folder: Path, tensor: int) -> list[tuple[int, ...]]:
    """With every length in one call, which has room for 30 responses at once."""
    greedy = RolloutConfig(max_new_tokens=TOKENS, temperature=0.0)
    with parallel_session(tensor):
        architecture = read_architecture(folder)
        model = build_model(architecture, transformer_config(architecture, tensor, 1, False, "fp32"))
        load_hf_weights(model, folder)
        engine = TrainingEngine(model, [STOP], config=EngineConfig(batch=30))
        return [r.ids for r in engine.generate(prompts(), range(len(LENGTHS)), greedy)]
