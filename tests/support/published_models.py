"""Shapes of published models, from their config.json, with the number of parameters that their model pages state."""

from dataclasses import dataclass
from math import gcd
from typing import Any


@dataclass(frozen=True)
class Published:
    family: str
    parameters: int
    hidden: int
    ffn: int
    layers: int
    heads: int
    groups: int
    head_size: int
    vocabulary: int
    tied: bool
    rope_theta: float
    positions: int
    eps: float

    def config(self) -> dict[str, Any]:
        """Arguments of the transformers config of the full size."""
        return {
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.groups,
            "head_dim": self.head_size,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": self.positions,
            "rms_norm_eps": self.eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
        }

    def small(self) -> dict[str, Any]:
        """The same with two layers and every width divided alike: heads : groups and hidden : heads · head size : FFN stay."""
        divisor = gcd(self.hidden, self.ffn, self.head_size) // 2
        narrow = {"hidden_size": self.hidden // divisor, "intermediate_size": self.ffn // divisor, "head_dim": self.head_size // divisor}
        return self.config() | narrow | {"num_hidden_layers": 2, "vocab_size": 61, "max_position_embeddings": 64}


def _qwen3(parameters: int, hidden: int, ffn: int, layers: int, heads: int, tied: bool) -> Published:
    return Published("qwen3", parameters, hidden, ffn, layers, heads, 8, 128, 151_936, tied, 1e6, 40_960, 1e-6)


PUBLISHED = {
    "Qwen3-0.6B": _qwen3(596_049_920, 1024, 3072, 28, 16, True),
    "Qwen3-1.7B": _qwen3(1_720_574_976, 2048, 6144, 28, 16, True),
    "Qwen3-4B": _qwen3(4_022_468_096, 2560, 9728, 36, 32, True),
    "Qwen3-8B": _qwen3(8_190_735_360, 4096, 12_288, 36, 32, False),
    "Qwen3-14B": _qwen3(14_768_307_200, 5120, 17_408, 40, 40, False),
    "Qwen3-32B": _qwen3(32_762_123_264, 5120, 25_600, 64, 64, False),
    "TinyLlama-1.1B": Published("llama", 1_100_048_384, 2048, 5632, 22, 32, 4, 64, 32_000, False, 1e4, 2048, 1e-5),
    "Llama-2-7B": Published("llama", 6_738_415_616, 4096, 11_008, 32, 32, 32, 128, 32_000, False, 1e4, 4096, 1e-5),
    "Llama-2-70B": Published("llama", 68_976_648_192, 8192, 28_672, 80, 64, 8, 128, 32_000, False, 1e4, 4096, 1e-5),
    "Llama-3-8B": Published("llama", 8_030_261_248, 4096, 14_336, 32, 32, 8, 128, 128_256, False, 5e5, 8192, 1e-5),
    # Its published config scales the rotary positions (llama3), which is refused; the shapes and the tied head are its own.
    "Llama-3.2-1B unscaled": Published("llama", 1_235_814_400, 2048, 8192, 16, 32, 8, 64, 128_256, True, 5e5, 8192, 1e-5),
}
