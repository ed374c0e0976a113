"""Building megatron.core's own config dataclasses from the pass-through sections `megatron:`, `optimizer:` and `ddp:`."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_type_hints

from megatron_atesd.config.fields import accepts, describe, did_you_mean, spell
from megatron_atesd.errors import ConfigError

T = TypeVar("T")

MODEL_FOLDER = "the model folder (model.path)"
RULED_BY = {
    "tensor_model_parallel_size": "parallel.tensor",
    "pipeline_model_parallel_size": "parallel.pipeline",
    "virtual_pipeline_model_parallel_size": "parallel.virtual_pipeline",
    "overlap_p2p_comm": "parallel.virtual_pipeline",
    "batch_p2p_comm": "parallel.virtual_pipeline",
    "context_parallel_size": "parallel.context",
    "sequence_parallel": "parallel.sequence",
    "transformer_impl": "model.attention",
    "fp8": "precision.student",
    "fp8_recipe": "precision.student",
    "bf16": "model.dtype",
    "params_dtype": "model.dtype",
    "pipeline_dtype": "model.dtype",
    "min_lr": "schedule.min_lr",
    "use_distributed_optimizer": "optimizer.use_distributed_optimizer",
    "num_layers": MODEL_FOLDER,
    "hidden_size": MODEL_FOLDER,
    "ffn_hidden_size": MODEL_FOLDER,
    "num_attention_heads": MODEL_FOLDER,
    "num_query_groups": MODEL_FOLDER,
    "kv_channels": MODEL_FOLDER,
    "layernorm_epsilon": MODEL_FOLDER,
    "qk_layernorm": MODEL_FOLDER,
    "normalization": MODEL_FOLDER,
    "gated_linear_unit": MODEL_FOLDER,
    "activation_func": MODEL_FOLDER,
    "add_bias_linear": MODEL_FOLDER,
}


# Fields of megatron.core that would change what this project computes, or that it would fail with later; the one value it knows.
UNSUPPORTED: dict[str, dict[str, Any]] = {
    "megatron": {
        "hierarchical_context_parallel_sizes": None,
        "hybrid_context_parallel": False,
        "apply_rope_fusion": False,  # its kernel knows neither a position for each sequence of a batch, nor bounds on the host
        "num_moe_experts": None,
        "multi_latent_attention": False,
        "mtp_num_layers": None,
        "defer_embedding_wgrad_compute": False,
        "fp16": False,
        "fp8_param": False,
        "fp8_dot_product_attention": False,
        "fp8_multi_head_attention": False,
        "fp4": None,
        # Followed by Transformer Engine's layers only, or not by generation: the same weights would be other models.
        "layernorm_zero_centered_gamma": False,
        "window_size": None,
        "softmax_type": "vanilla",
        "fp32_residual_connection": False,
        "add_qkv_bias": False,
        "attention_output_gate": False,
        "rotary_interleaved": False,
        "glu_linear_offset": 0.0,
        "activation_func_clamp_value": None,
        "delay_wgrad_compute": False,  # nobody here would ask for the gradients of the weights
        "tp_comm_overlap": False,  # Transformer Engine's communication buffers are not set up
    },
    "optimizer": {
        "fp16": False,
        "optimizer_cpu_offload": False,
        "overlap_param_gather_with_optimizer_step": False,
        "use_precision_aware_optimizer": False,  # its states are saved in forms that do not load at another layout
    },
    "ddp": {"average_in_collective": False, "align_param_gather": False},
}


def build_section(name: str, cls: type[T], fixed: Mapping[str, Any], user: Mapping[str, Any]) -> T:
    """The dataclass `cls` from the values that other settings decide (`fixed`) and those of section `name` (`user`).

    Raises ConfigError for an unknown key of `user` (with the nearest valid one), a key that `fixed` decides (naming the setting to change
    instead), a value that is infinite or of a wrong type where YAML can spell the type, one that this project cannot work with, and
    whatever `cls` itself refuses.
    """
    settable = {f.name for f in fields(cls) if f.init}  # pyright: ignore[reportArgumentType]
    assert fixed.keys() <= settable, fixed.keys() - settable
    hints = _type_hints(cls)
    for key, value in user.items():
        if key in fixed:
            raise ConfigError(f"{name}.{key} is decided by {RULED_BY.get(key, 'this program and cannot be set')}; remove it from {name}")
        if key not in settable:
            known = [f"{name}.{k}" for k in settable - fixed.keys()]
            raise ConfigError(f"unknown setting {name}.{key}: {cls.__name__} has no such field{did_you_mean(f'{name}.{key}', known)}")
        if not accepts(hints.get(key, Any), value):
            raise ConfigError(f"{name}.{key} is {spell(value)}, must be {describe(hints[key])}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{name}.{key} is {spell(value)}, must be finite")
        only = UNSUPPORTED.get(name, {})
        if key in only and value != only[key]:
            raise ConfigError(f"{name}.{key} is {spell(value)}, but this project works with {spell(only[key])} only; remove it from {name}")
    try:
        return cls(**fixed, **user)
    except (ValueError, AssertionError) as error:
        reason = " ".join(str(error).split()) or "it gave no reason"
        raise ConfigError(f"{cls.__name__} refuses section {name} ({_listed(user)}): {reason}") from error


def _type_hints(cls: type) -> dict[str, Any]:
    """Resolved field types; empty if one names a type of a package that is not installed here."""
    try:
        return get_type_hints(cls)
    except NameError:
        return {}


def _listed(user: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {spell(value)}" for key, value in user.items()) or "empty"
