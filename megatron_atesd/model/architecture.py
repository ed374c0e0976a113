"""What the model folder says about a model, in the numbers that Megatron needs, and which numbers cannot be."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_atesd.config import ModelShape
from megatron_atesd.errors import ConversionError

SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)
MOST_LAYERS = 1000  # several times the deepest published model; transformers and the name table make lists of this length


@dataclass(frozen=True)
class Architecture:
    """The numbers of a decoder-only model that Megatron needs, as published in its config.json."""

    family: str
    hidden: int
    ffn: int
    layers: int
    heads: int
    query_groups: int
    head_size: int
    vocabulary: int
    max_positions: int
    rope_base: float
    norm_eps: float
    tied: bool
    qk_norm: bool

    @property
    def shape(self) -> ModelShape:
        """What the rules of settings need to know."""
        return ModelShape(self.heads, self.query_groups, self.layers, self.ffn, self.max_positions)


def check_sizes(config: Path, values: Mapping[str, Any]) -> None:
    """Raise ConversionError for a size in config.json that is no whole number of a size to expect. Sizes may be left out."""
    for name in SIZES:
        most = MOST_LAYERS if name == "num_hidden_layers" else 2**31 - 1
        if name in values and not (type(values[name]) is int and 1 <= values[name] <= most) and (name, values[name]) != ("head_dim", None):
            raise ConversionError(f"{config}: {name} is {values[name]!r}, must be a whole number from 1 to {most}; download the file again")


def check_numbers(config: Path, arch: Architecture) -> None:
    """Raise ConversionError for numbers that do not fit one another or that nothing can be computed with."""
    rules = {
        f"num_attention_heads {arch.heads} must be a multiple of num_key_value_heads {arch.query_groups}": arch.heads % arch.query_groups
        == 0,
        f"head_dim {arch.head_size} must be even, as rotary embedding turns pairs": arch.head_size > 0 and arch.head_size % 2 == 0,
        f"rms_norm_eps is {arch.norm_eps}, must be greater than 0": _positive(arch.norm_eps),
        f"rope_theta is {arch.rope_base}, must be greater than 0": _positive(arch.rope_base),
    }
    for rule, holds in rules.items():
        if not holds:
            raise ConversionError(f"{config}: {rule}; download the file again")


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
