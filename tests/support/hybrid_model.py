"""megatron.core's HybridModel of our own parts, and its state where a checkpoint of our GPTModel has it. Needs megatron-core 0.19.

HybridModel makes a layer of each half of ours: pattern *- for each, * its attention and - its MLP.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.gpt_checkpoint_interop import (  # pyright: ignore[reportMissingImports]
    gpt_compatible_layer_maps,
    retarget_sharded_state_dict_to_gpt_checkpoint,
)
from megatron.core.models.hybrid.hybrid_block import HybridStack, HybridStackSubmodules  # pyright: ignore[reportMissingImports]
from megatron.core.models.hybrid.hybrid_model import HybridModel  # pyright: ignore[reportMissingImports]
from megatron.core.ssm.mlp_layer import MLPLayer
from megatron.core.transformer.identity_op import IdentityFuncOp, IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from megatron_atesd.checkpoint.reading import read_folder
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.chunk import padded_vocabulary
from megatron_atesd.model.gpt import EXTRA_STATE
from megatron_atesd.model.layers import RMSNorm
from megatron_atesd.model.packed_sequences import PackedSequences
from megatron_atesd.model.spec import block_spec
from megatron_atesd.model.trained import MODEL_PREFIX
from megatron_atesd.parallel.context import Bounds, split_sequences


class Stack(HybridStack):
    """HybridStack with our last norm: its own is Transformer Engine's, whatever the spec says."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, post_layer_norm=False)
        self.post_layer_norm = True
        if self.post_process:
            self.final_norm = RMSNorm(self.config, self.config.hidden_size, self.config.layernorm_epsilon)


class HybridChunk(HybridModel):
    """Called as a ModelChunk is; the last chunk returns logits [B, S / CP, V / TP] of this rank's tokens."""

    def forward(self, ids_BS: Tensor, bounds: Bounds | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        packed = None if bounds is None else PackedSequences(bounds)
        own_BS = split_sequences(ids_BS, bounds or (0, ids_BS.shape[1]))
        return super().forward(own_BS, None, None, packed_seq_params=packed)


class Hybrid(torch.nn.ModuleList):
    """What HiddenStateGPT is of ModelChunks, of HybridChunks: this rank's.

    config: as for twice the layers. segments: layers of ours in each chunk of the whole model, in the order in which activations pass.
    """

    def __init__(self, arch: Architecture, config: TransformerConfig, segments: Sequence[int]) -> None:
        self.pattern = "|".join("*-" * layers for layers in segments)
        chunks = config.virtual_pipeline_model_parallel_size
        super().__init__([_chunk(arch, config, self.pattern, index if chunks else None) for index in range(chunks or 1)])
        self.config = config
        self.to(device=torch.cuda.current_device(), dtype=config.params_dtype)

    @property
    def chunks(self) -> list[Any]:
        return list(self)

    def model_state(self, extra: bool = False) -> dict[str, Any]:
        """Sharded state by chunk, under HybridModel's own names; with `extra` of the empty objects beside linear layers, too."""
        states = (chunk.sharded_state_dict(prefix=MODEL_PREFIX) for chunk in self.chunks)
        return {str(i): {k: v for k, v in state.items() if extra or not k.endswith(EXTRA_STATE)} for i, state in enumerate(states)}

    def as_gpt(self, state: dict[str, Any]) -> dict[str, Any]:
        """`state`, of the model or with an optimizer's beside it, where our checkpoints have it. In place."""
        retarget_sharded_state_dict_to_gpt_checkpoint(state, gpt_compatible_layer_maps(self.pattern))
        return state

    def take(self, states: Mapping[str, Any]) -> None:
        """Take over a loaded model_state. Raises AssertionError for a parameter that is not in it, or one too many."""
        for chunk, state in zip(self.chunks, states.values(), strict=True):
            left = chunk.load_state_dict({name.removeprefix(MODEL_PREFIX): value for name, value in state.items()}, strict=False)
            assert not left.unexpected_keys
            assert all(name.endswith(EXTRA_STATE) for name in left.missing_keys), left.missing_keys

    def load(self, folder: Path, extra: bool = False) -> None:
        """The weights of a model folder or checkpoint of ours."""
        self.take(read_folder(folder, self.as_gpt({"model": self.model_state(extra)}))["model"])


def _chunk(arch: Architecture, config: TransformerConfig, pattern: str, index: int | None) -> HybridChunk:
    return HybridChunk(
        config=config,
        hybrid_stack_spec=ModuleSpec(module=Stack, submodules=HybridStackSubmodules(**dict(_halves(config)))),
        vocab_size=padded_vocabulary(arch.vocabulary, config.tensor_model_parallel_size),
        max_sequence_length=arch.max_positions,
        hybrid_layer_pattern=pattern,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=index),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=index),
        share_embeddings_and_output_weights=arch.tied,
        position_embedding_type="rope",
        rotary_base=cast("Any", arch.rope_base),
        vp_stage=index,
    )


def _halves(config: TransformerConfig) -> Iterator[tuple[str, ModuleSpec]]:
    """Our layer, once without its MLP and once without its attention."""
    parts = block_spec(config, 0).layer_specs[0].submodules
    no_attention: Any = {"input_layernorm": IdentityOp, "self_attention": IdentityOp, "self_attn_bda": IdentityFuncOp}
    no_mlp: Any = {"pre_mlp_layernorm": IdentityOp, "mlp": IdentityOp, "mlp_bda": IdentityFuncOp}
    yield "attention_layer", ModuleSpec(module=TransformerLayer, submodules=replace(parts, **no_mlp))
    yield "mlp_layer", ModuleSpec(module=MLPLayer, submodules=replace(parts, **no_attention))


def gpt_name(name: str) -> str:
    """What a parameter of a HybridChunk is called in the ModelChunk of the same layers."""
    halves = re.sub(r"(?<=decoder\.layers\.)\d+", lambda number: str(int(number[0]) // 2), name)
    return halves.replace("decoder.final_norm.", "decoder.final_layernorm.")
