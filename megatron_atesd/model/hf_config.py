"""Hugging Face config.json → Architecture (dense Qwen3; Llama without scaled RoPE)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_atesd.data.hf_json import read_json_object
from megatron_atesd.errors import ConversionError
from megatron_atesd.model.architecture import Architecture, check_numbers, check_sizes


def read_architecture(folder: Path) -> Architecture:
    """Architecture of the Hugging Face model in `folder`.

    Raises ConversionError when there is no config.json, the family is unknown, or it uses a feature that is not supported.
    """
    from transformers import AutoConfig

    config = folder / "config.json"
    if not config.is_file():
        exported = f", such as {folder / 'hf'}" if any((folder / "hf").glob("*.safetensors")) else ""
        raise ConversionError(f"{folder}: no config.json here; give a Hugging Face model folder{exported}")
    values = read_json_object(config)
    if values.get("model_type") not in ("qwen3", "llama"):
        raise ConversionError(f"{config}: model_type {values.get('model_type')!r} is not supported; use qwen3 or llama")
    check_sizes(config, values)
    try:
        hf: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a value of a wrong type raises whatever transformers' own checks raise
        raise ConversionError(f"{config}: not a transformers config: {error}; download it again") from error
    _refuse_unsupported(folder, hf)
    architecture = Architecture(
        family=hf.model_type,
        hidden=hf.hidden_size,
        ffn=hf.intermediate_size,
        layers=hf.num_hidden_layers,
        heads=hf.num_attention_heads,
        query_groups=hf.num_key_value_heads,
        head_size=getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads,
        vocabulary=hf.vocab_size,
        max_positions=hf.max_position_embeddings,
        rope_base=_rope(hf).get("rope_theta", 10_000.0),
        norm_eps=hf.rms_norm_eps,
        tied=bool(hf.tie_word_embeddings),
        qk_norm=hf.model_type == "qwen3",
    )
    check_numbers(config, architecture)
    return architecture


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
