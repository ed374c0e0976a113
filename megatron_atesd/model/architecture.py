"""What the model folder says about a model, in the numbers that Megatron needs."""

from dataclasses import dataclass


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
