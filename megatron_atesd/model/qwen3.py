"""Hugging Face config.json → megatron.core TransformerConfig, layer spec and GPTModel (dense Qwen3; Llama without scaled RoPE)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_atesd.config_sections import build_section
from megatron_atesd.errors import ConversionError
from megatron_atesd.model.layers import CachedAttention, CacheSlot, PositionedRotary, RMSNorm

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


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


def read_architecture(folder: Path) -> Architecture:
    """Architecture of the Hugging Face model in `folder`.

    Raises ConversionError when there is no config.json, the family is unknown, or it uses a feature that is not supported.
    """
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise ConversionError(f"{folder}: no config.json here; give a Hugging Face model folder")
    try:
        hf = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise ConversionError(f"{folder / 'config.json'}: cannot be read as a transformers config: {error}") from error
    if hf.model_type not in ("qwen3", "llama"):
        raise ConversionError(f"{folder / 'config.json'}: model_type {hf.model_type!r} is not supported; use qwen3 or llama")
    _refuse_unsupported(folder, hf)
    return Architecture(
        family=hf.model_type,
        hidden=hf.hidden_size,
        ffn=hf.intermediate_size,
        layers=hf.num_hidden_layers,
        heads=hf.num_attention_heads,
        query_groups=hf.num_key_value_heads,
        head_size=getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads,
        vocabulary=hf.vocab_size,
        max_positions=hf.max_position_embeddings,
        rope_base=float(_rope(hf).get("rope_theta", 10_000.0)),
        norm_eps=hf.rms_norm_eps,
        tied=bool(hf.tie_word_embeddings),
        qk_norm=hf.model_type == "qwen3",
    )


def _rope(hf: Any) -> Mapping[str, Any]:
    return getattr(hf, "rope_parameters", None) or {"rope_theta": getattr(hf, "rope_theta", 10_000.0)}


def _refuse_unsupported(folder: Path, hf: Any) -> None:
    rules = {
        "attention_bias": getattr(hf, "attention_bias", False),
        "mlp_bias": getattr(hf, "mlp_bias", False),
        "use_sliding_window": getattr(hf, "use_sliding_window", False),
        "rope scaling": _rope(hf).get("rope_type", "default") != "default",
        "hidden_act other than silu": hf.hidden_act != "silu",
    }
    for feature, present in rules.items():
        if present:
            raise ConversionError(f"{folder / 'config.json'}: {feature} is not supported by this Megatron model; choose a model without it")


def transformer_config(
    arch: Architecture, tensor: int, pipeline: int, sequence: bool, dtype: str, user: Mapping[str, Any] | None = None
) -> TransformerConfig:
    """TransformerConfig of `arch`; `user` are pass-through fields (section megatron:), which may not contradict what is set here."""
    fixed = {
        "num_layers": arch.layers,
        "hidden_size": arch.hidden,
        "ffn_hidden_size": arch.ffn,
        "num_attention_heads": arch.heads,
        "num_query_groups": arch.query_groups,
        "kv_channels": arch.head_size,
        "layernorm_epsilon": arch.norm_eps,
        "qk_layernorm": arch.qk_norm,
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": torch.nn.functional.silu,
        "add_bias_linear": False,
        "tensor_model_parallel_size": tensor,
        "pipeline_model_parallel_size": pipeline,
        "sequence_parallel": sequence,
        "pipeline_dtype": DTYPES[dtype],
        "params_dtype": DTYPES[dtype],
        "bf16": dtype == "bf16",
        "calculate_per_token_loss": True,
        "variable_seq_lengths": True,
    }
    defaults = {
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "bias_activation_fusion": False,
        "bias_dropout_fusion": False,
        "masked_softmax_fusion": False,
        "gradient_accumulation_fusion": False,
        "moe_token_dispatcher_type": "alltoall",  # variable_seq_lengths demands it, even without experts
    }
    return build_section("megatron", TransformerConfig, fixed, {**defaults, **(user or {})})


class HiddenStateGPT(GPTModel):
    """GPTModel whose last stage returns final hidden states [B, S, H] instead of logits.

    The vocabulary projection belongs to the loss and to sampling, which form logits only where and as long as they need them.
    Under sequence parallelism the hidden states are gathered; their gradient must arrive whole on every TP rank.
    """

    def __init__(self, arch: Architecture, config: TransformerConfig, padded_vocabulary: int, pre: bool, post: bool) -> None:
        self.slot: CacheSlot
        slot = CacheSlot()
        super().__init__(
            config=config,
            transformer_layer_spec=_block_spec(config, slot),
            vocab_size=padded_vocabulary,
            max_sequence_length=arch.max_positions,
            pre_process=pre,
            post_process=post,
            share_embeddings_and_output_weights=arch.tied,
            position_embedding_type="rope",
            rotary_base=arch.rope_base,  # pyright: ignore[reportArgumentType]
        )
        self.arch, self.slot = arch, slot
        self.rotary_pos_emb = PositionedRotary(
            slot=slot,
            kv_channels=arch.head_size,
            rotary_percent=1.0,
            rotary_base=arch.rope_base,
            use_cpu_initialization=not torch.cuda.is_available(),
        )

    def _postprocess(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        if not self.post_process:
            return hidden_states
        if self.config.sequence_parallel:
            hidden_states = tensor_parallel.gather_from_sequence_parallel_region(hidden_states, tensor_parallel_output_grad=False)
        return hidden_states.transpose(0, 1).contiguous()

    def head_weight(self) -> torch.nn.Parameter:
        """The vocabulary projection [V, H] of this TP rank (last pipeline stage only); tied models give the embedding."""
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else self.output_layer.weight
        assert isinstance(weight, torch.nn.Parameter)
        return weight

    @contextmanager
    def without_sequence_parallel(self) -> Iterator[None]:
        """Single-token decoding cannot be split along the sequence: SP is off inside, with equal results."""
        names = ("sequence_parallel", "scatter_to_sequence_parallel", "reduce_scatter_embeddings")
        targets = [(m, n) for m in (*self.modules(), self.config) for n in names if getattr(m, n, None) is True]
        for target, name in targets:
            setattr(target, name, False)
        try:
            yield
        finally:
            for target, name in targets:
                setattr(target, name, True)


def _block_spec(config: TransformerConfig, slot: CacheSlot) -> Any:
    layer: Any = get_gpt_layer_local_spec(qk_layernorm=config.qk_layernorm, normalization="RMSNorm")
    parts, attention = layer.submodules, layer.submodules.self_attention.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
    attention.core_attention = ModuleSpec(module=CachedAttention, params={"slot": slot})
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    norm: Any = RMSNorm  # a class serves where megatron.core's annotation asks for a spec
    return TransformerBlockSubmodules(layer_specs=[layer] * get_num_layers_to_build(config), layer_norm=norm)


def padded_vocabulary(vocabulary: int, tensor: int) -> int:
    """Smallest multiple of TP that holds the vocabulary; padding rows are zero and take no part in any softmax."""
    return -(-vocabulary // tensor) * tensor


def build_model(arch: Architecture, config: TransformerConfig) -> HiddenStateGPT:
    """This rank's part of the model, on its device, in the parameter dtype; weights are random until loaded."""
    pre, post = parallel_state.is_pipeline_first_stage(), parallel_state.is_pipeline_last_stage()
    model = HiddenStateGPT(arch, config, padded_vocabulary(arch.vocabulary, config.tensor_model_parallel_size), pre, post)
    return model.to(device=torch.cuda.current_device(), dtype=config.params_dtype)
