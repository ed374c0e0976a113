"""One chunk of the model: consecutive layers that a pipeline rank runs without talking to another."""

from typing import Any, cast

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from torch import Tensor

from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.packed_sequences import PackedSequences
from megatron_atesd.model.spec import block_spec
from megatron_atesd.parallel.context import Bounds, context_place, join_sequences, split_sequences

_LAYERS = "decoder.layers."


class ModelChunk(GPTModel):
    """GPTModel whose last chunk returns final hidden states [B, S, H] instead of logits.

    The vocabulary projection belongs to the loss and to sampling, which form logits only where and as long as they need them.
    Under sequence and context parallelism the hidden states are gathered. Their gradient must arrive whole on every TP rank, while
    those of CP ranks are added: each has its share of the loss.
    index: which of the pipeline rank's chunks this is, in the order in which activations pass them.
    """

    def __init__(self, arch: Architecture, config: TransformerConfig, index: int) -> None:
        super().__init__(
            config=config,
            transformer_layer_spec=block_spec(config, index),
            vocab_size=padded_vocabulary(arch.vocabulary, config.tensor_model_parallel_size),
            max_sequence_length=arch.max_positions,
            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=index),
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=index),
            share_embeddings_and_output_weights=arch.tied,
            position_embedding_type="rope",
            rotary_base=arch.rope_base,  # pyright: ignore[reportArgumentType]
            vp_stage=index,
        )
        self.first_layer = get_transformer_layer_offset(config, index)

    def forward(self, ids_BS: Tensor, bounds: Bounds | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Hidden states of whole sequences [B, S]; with `bounds` B is 1 and several sequences lie one after the other between them."""
        packed: Any = None if bounds is None else PackedSequences(bounds)
        ids_BS = split_sequences(ids_BS, bounds or (0, ids_BS.shape[1]))
        return super().forward(ids_BS, cast("Any", None), cast("Any", None), packed_seq_params=packed)

    def _postprocess(self, hidden_states: Tensor, *_: Any, packed_seq_params: PackedSequences | None = None, **__: Any) -> Tensor:
        if not self.post_process:
            return hidden_states
        if self.config.sequence_parallel:
            hidden_states = tensor_parallel.gather_from_sequence_parallel_region(hidden_states, tensor_parallel_output_grad=False)
        bounds = packed_seq_params.bounds if packed_seq_params is not None else (0, len(hidden_states) * context_place()[1])
        hidden_states = join_sequences(hidden_states, bounds)
        return hidden_states.transpose(0, 1).contiguous()

    def head_weight(self) -> torch.nn.Parameter:
        """The vocabulary projection [V, H] of this TP rank (last chunk only); tied models give the embedding."""
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else self.output_layer.weight
        assert isinstance(weight, torch.nn.Parameter)
        return weight

    def whole_name(self, name: str) -> str:
        """What this chunk's `name` is called in the whole model, whose layers count from its first."""
        if not name.startswith(_LAYERS):
            return name
        number, _, rest = name.removeprefix(_LAYERS).partition(".")
        return f"{_LAYERS}{int(number) + self.first_layer}.{rest}"


def padded_vocabulary(vocabulary: int, tensor: int) -> int:
    """Smallest multiple of TP that holds the vocabulary; padding rows are zero and take no part in any softmax."""
    return -(-vocabulary // tensor) * tensor
