"""Architecture and settings → megatron.core's TransformerConfig."""

from collections.abc import Mapping
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_atesd.config import Precision, TrainConfig, build_section
from megatron_atesd.errors import ConfigError
from megatron_atesd.model.apex import check_gradient_fusion, find_apex
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.fp8 import fp8_fields
from megatron_atesd.model.spec import stage_layers, uses_transformer_engine

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Of section megatron, where they are not megatron.core's.
MEGATRON_DEFAULTS = {
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "bias_activation_fusion": False,
    "bias_dropout_fusion": False,
    "masked_softmax_fusion": False,
    "gradient_accumulation_fusion": False,
    "fp8_amax_history_len": 1024,  # as Transformer Engine itself: of a single entry, an empty micro-batch would set the next scale
    "fp8_amax_compute_algo": "max",
    "moe_token_dispatcher_type": "alltoall",  # variable_seq_lengths demands it, even without experts
}


def megatron_settings(config: TrainConfig, architecture: Architecture) -> TransformerConfig:
    """megatron.core's model settings of a run; passes that ask for no other precision are in the student's."""
    parallel = config.parallel
    return transformer_config(
        architecture,
        parallel.tensor,
        parallel.pipeline,
        parallel.sequence,
        config.model.dtype,
        config.megatron,
        parallel.virtual_pipeline,
        context=parallel.context,
        transformer_engine=uses_transformer_engine(config.model),
        precision=config.precision.student,
    )


def transformer_config(
    arch: Architecture,
    tensor: int,
    pipeline: int,
    sequence: bool,
    dtype: str,
    user: Mapping[str, Any] | None = None,
    virtual_pipeline: int = 1,
    *,
    context: int = 1,
    transformer_engine: bool = False,
    precision: Precision | None = None,
) -> TransformerConfig:
    """TransformerConfig of `arch`; `user` are pass-through fields (section megatron:), which may not contradict what is set here.

    transformer_engine: layers from Transformer Engine (`uses_transformer_engine`). precision: of passes that ask for no other.
    """
    fixed = {
        **_model_fields(arch),
        "tensor_model_parallel_size": tensor,
        "pipeline_model_parallel_size": pipeline,
        "virtual_pipeline_model_parallel_size": virtual_pipeline if virtual_pipeline > 1 else None,
        "context_parallel_size": context,
        "sequence_parallel": sequence,
        "pipeline_dtype": DTYPES[dtype],
        "params_dtype": DTYPES[dtype],
        "bf16": dtype == "bf16",
        "transformer_impl": "transformer_engine" if transformer_engine else "local",
        **fp8_fields(precision),
        # The delayed recipe reduces its amax in every micro-batch, of which data-parallel ranks may have different numbers.
        "tp_only_amax_red": True,
        "calculate_per_token_loss": True,
        "variable_seq_lengths": True,
    }
    if virtual_pipeline > 1:
        # Batched, a rank's messages forward and backward could mix where both neighbours are one rank (PP = 2).
        fixed |= {"overlap_p2p_comm": True, "batch_p2p_comm": False}
    config = build_section("megatron", TransformerConfig, fixed, user or {}, MEGATRON_DEFAULTS)
    check_gradient_fusion(config.gradient_accumulation_fusion, find_apex())
    _check_chunks(config, arch.layers // (pipeline * virtual_pipeline), virtual_pipeline)
    return config


def _model_fields(arch: Architecture) -> dict[str, Any]:
    return {
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
    }


def _check_chunks(config: TransformerConfig, layers: int, virtual_pipeline: int) -> None:
    """Raise ConfigError for pass-through fields that do not fit chunks of so many layers, `virtual_pipeline` on a pipeline rank."""
    chunks = config.virtual_pipeline_model_parallel_size or 1
    if chunks != virtual_pipeline:
        raise ConfigError(
            f"megatron.pipeline_model_parallel_layout makes {chunks} model chunks a pipeline rank, but parallel.virtual_pipeline is "
            f"{virtual_pipeline}; set it to {chunks}, or change the layout"
        )
    stages = stage_layers(config)
    if min(stages) < 0:  # megatron.core would build the others
        raise ConfigError(
            "megatron.num_layers_in_first_pipeline_stage and num_layers_in_last_pipeline_stage leave the other stages "
            f"{min(stages)} layers; lower them"
        )
    if config.recompute_granularity == "full" and (config.recompute_num_layers or 0) > layers:
        raise ConfigError(
            f"megatron.recompute_num_layers is {config.recompute_num_layers}, but a model chunk has {layers} layers; give at most {layers}"
        )
