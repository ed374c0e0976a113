"""The one name table: Hugging Face tensor ↔ Megatron parameter + operation, for Qwen3 (qk norm) and Llama (none).

Megatron names have two spellings: the local layer spec keeps norms as modules of their own, the Transformer Engine spec fuses them into
the linear layer behind them. Layer numbers are global, as HiddenStateGPT gives them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from megatron_atesd.model.architecture import Architecture

# What becomes of the Hugging Face tensors, and along which dimension tensor parallelism divides each of them:
# copy: as it is, whole on every rank. columns: as it is, divided along dimension 1 (row-parallel linear layers).
# qkv: query, key, value interleaved by query group, dimension 0. gate_up: both stacked, dimension 0. vocabulary: padded rows, dimension 0.
Operation = Literal["copy", "columns", "qkv", "gate_up", "vocabulary"]

# Shapes in letters: H hidden, Q heads·D, K query groups·D, D head size, F FFN width, V vocabulary.
_Row = tuple[tuple[str, ...], Operation, dict[str, str]]
_LAYER: tuple[_Row, ...] = (
    (("input_layernorm.weight", "self_attention.linear_qkv.layer_norm_weight"), "copy", {"input_layernorm.weight": "H"}),
    (
        ("self_attention.linear_qkv.weight",),
        "qkv",
        {"self_attn.q_proj.weight": "QH", "self_attn.k_proj.weight": "KH", "self_attn.v_proj.weight": "KH"},
    ),
    (("self_attention.linear_proj.weight",), "columns", {"self_attn.o_proj.weight": "HQ"}),
    (("pre_mlp_layernorm.weight", "mlp.linear_fc1.layer_norm_weight"), "copy", {"post_attention_layernorm.weight": "H"}),
    (("mlp.linear_fc1.weight",), "gate_up", {"mlp.gate_proj.weight": "FH", "mlp.up_proj.weight": "FH"}),
    (("mlp.linear_fc2.weight",), "columns", {"mlp.down_proj.weight": "HF"}),
)
_QK_NORM: tuple[_Row, ...] = (
    (("self_attention.q_layernorm.weight",), "copy", {"self_attn.q_norm.weight": "D"}),
    (("self_attention.k_layernorm.weight",), "copy", {"self_attn.k_norm.weight": "D"}),
)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    megatron: spellings of the parameter; a pipeline stage has at most one of them.
    sources: Hugging Face names with their shapes, in the order in which the operation takes them.
    """

    megatron: tuple[str, ...]
    operation: Operation
    sources: dict[str, tuple[int, ...]]

    @property
    def stored(self) -> str:
        """The spelling in checkpoints, whichever spec the model has: Transformer Engine's; the embedding's for a tied head."""
        return self.megatron[0] if self.operation == "vocabulary" else self.megatron[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the undivided Megatron parameter: its sources above one another."""
        shapes = list(self.sources.values())
        return sum(shape[0] for shape in shapes), *shapes[0][1:]


def name_table(arch: Architecture) -> Iterator[Entry]:
    """Every parameter of the model, from the embedding to the head."""
    sizes = {
        "H": arch.hidden,
        "Q": arch.heads * arch.head_size,
        "K": arch.query_groups * arch.head_size,
        "D": arch.head_size,
        "F": arch.ffn,
        "V": arch.vocabulary,
    }
    for megatron, operation, sources in _rows(arch):
        yield Entry(megatron, operation, {name: tuple(sizes[letter] for letter in shape) for name, shape in sources.items()})


def _rows(arch: Architecture) -> Iterator[_Row]:
    embedding, head = "embedding.word_embeddings.weight", "output_layer.weight"
    # With tied weights and several pipeline stages, the last one holds the embedding under the head's name.
    yield (embedding, head) if arch.tied else (embedding,), "vocabulary", {EMBEDDING: "VH"}
    for layer in range(arch.layers):
        for megatron, operation, sources in (*_LAYER, *(_QK_NORM if arch.qk_norm else ())):
            yield (
                tuple(f"decoder.layers.{layer}.{name}" for name in megatron),
                operation,
                {f"model.layers.{layer}.{name}": shape for name, shape in sources.items()},
            )
    yield ("decoder.final_layernorm.weight",), "copy", {"model.norm.weight": "H"}
    if not arch.tied:
        yield (head,), "vocabulary", {HEAD: "VH"}
