"""Building megatron.core's own config dataclasses from the pass-through sections `megatron:`, `optimizer:` and `ddp:`."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeVar, get_type_hints

from megatron_atesd.config.bounds import BELOW_ONE, ZERO_OR_MORE, Bound
from megatron_atesd.config.fields import accepts, describe, did_you_mean, spell
from megatron_atesd.errors import AtesdError, ConfigError

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
        "no_rope_freq": None,
        "tp_comm_overlap": False,  # Transformer Engine's communication buffers are not set up
        # Not made here, or for other parts than the layers have: megatron.core fails in the building of the model or in its first pass.
        "test_mode": False,
        "use_te_activation_func": False,
        "heterogeneous_block_specs": False,
        "enable_cuda_graph": False,
        "external_cuda_graph": False,
        "cuda_graph_impl": "none",
        "cuda_graph_scope": None,
        "fused_single_qkv_rope": False,
        "cpu_offloading": False,
        "symmetric_ar_type": None,
        "use_ring_exchange_p2p": False,
        "moe_permute_fusion": False,
    },
    "optimizer": {
        "fp16": False,
        "optimizer_cpu_offload": False,
        "overlap_param_gather_with_optimizer_step": False,
        "use_precision_aware_optimizer": False,  # its states are saved in forms that do not load at another layout
    },
    "ddp": {
        "average_in_collective": False,
        "align_param_gather": False,
        "num_distributed_optimizer_instances": 1,
        "use_megatron_fsdp": False,
        "nccl_ub": False,
    },
}

# Numbers that megatron.core takes as they are and that torch refuses later.
PASSED_BOUNDS: dict[str, Bound] = {
    "megatron.hidden_dropout": BELOW_ONE,
    "megatron.attention_dropout": BELOW_ONE,
    "megatron.init_method_std": ZERO_OR_MORE,
    "megatron.embedding_init_method_std": ZERO_OR_MORE,
    "optimizer.lr": ZERO_OR_MORE,
    "optimizer.weight_decay": ZERO_OR_MORE,
    "optimizer.adam_beta1": BELOW_ONE,
    "optimizer.adam_beta2": BELOW_ONE,
    "optimizer.adam_eps": ZERO_OR_MORE,
}


def build_section(
    name: str, cls: type[T], fixed: Mapping[str, Any], user: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> T:
    """The dataclass `cls` from the values that other settings decide (`fixed`) and those of section `name` (`user`).

    defaults: of fields that the user leaves out, where they are not megatron.core's.

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
        rule, holds = PASSED_BOUNDS.get(f"{name}.{key}", ("", lambda _: True))
        if value is not None and not holds(value):
            raise ConfigError(f"{name}.{key} is {spell(value)}, must be {rule}")
    with naming_section(name, user):
        return cls(**fixed, **{**(defaults or {}), **user})


@contextmanager
def naming_section(name: str, user: Mapping[str, Any]) -> Iterator[None]:
    """Whatever megatron.core raises inside becomes a ConfigError that says what is set in section `name`, if anything is.

    Except what torch and the machine raise, such as a lack of memory.
    """
    try:
        yield
    except (AtesdError, OSError, MemoryError, RuntimeError):
        raise
    except Exception as error:
        if not user:
            raise
        reason = " ".join(str(error).split())[:300] or "no reason given"
        what = ", ".join(f"{key}: {spell(value)}" for key, value in user.items())
        raise ConfigError(
            f"megatron.core does not work with section {name} ({what}): {type(error).__name__}: {reason}; remove or change what it names"
        ) from error


def _type_hints(cls: type) -> dict[str, Any]:
    """Resolved field types; empty if one names a type of a package that is not installed here."""
    try:
        return get_type_hints(cls)
    except NameError:
        return {}
