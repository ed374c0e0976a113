"""One distillation small enough to be recomputed: models of a student and a teacher, four examples, the divergence between them."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from megatron_atesd.distill.divergence import Divergence
from megatron_atesd.distill.readings import Example

DIVERGENCE = Divergence("forward_kl", clip=0.5, temperature=1.1)
RECOMPUTE = {
    "": {},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
    "selective": {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]},
}


def examples(vocabulary: int) -> list[Example]:
    """Ragged prompts and responses; the teacher's prompts are longer than the student's.

    One sequence has fewer tokens than context parallelism has chunks, one response is empty.
    """
    random = torch.Generator().manual_seed(7)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (1,), generator=random))
        return torch.randint(vocabulary, (length,), generator=random).tolist()

    first, last = (Example(ids(2, 6), ids(5, 14), ids(3, 9)) for _ in range(2))
    return [first, Example(ids(1, 2), ids(2, 3), ids(1, 2)), Example(ids(2, 6), ids(5, 14), []), last]


def save_models(folder: Path, family: str, tied: bool, vocabulary: int = 37) -> None:
    """Student and (different) teacher weights, as Hugging Face folders. The vocabulary is odd unless another is given: TP pads it."""
    shape = {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": tied, "max_position_embeddings": 64,
    }  # fmt: skip
    for seed, role in enumerate(("student", "teacher")):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(Qwen3Config(**shape)) if family == "qwen3" else LlamaForCausalLM(LlamaConfig(**shape))
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
        model.save_pretrained(folder / role)
