"""What a chunk's transformer layers are made of: Transformer Engine's modules, or megatron.core's local ones with torch's kernels."""

from importlib.util import find_spec
from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec, get_gpt_layer_with_transformer_engine_spec
from megatron.core.transformer.enums import LayerType
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_atesd.config import ModelConfig
from megatron_atesd.errors import ConfigError
from megatron_atesd.model.attention import CausalAttention
from megatron_atesd.model.layers import RMSNorm


def uses_transformer_engine(model: ModelConfig) -> bool:
    """Whether model.attention means Transformer Engine on this machine. Raises ConfigError for te where it cannot run.

    auto leaves fp32 to torch: Transformer Engine rounds the operands of its fp32 products to TF32.
    """
    installed, gpu = find_spec("transformer_engine") is not None, torch.cuda.is_available()
    if model.attention == "te" and not (installed and gpu):
        install = "Transformer Engine is not installed (pip install --no-build-isolation -e '.[gpu]')"
        lacks = "there is no GPU here" if installed else install
        raise ConfigError(f"model.attention is te, but {lacks}; set it to auto or sdpa")
    return model.attention == "te" or (model.attention == "auto" and model.dtype == "bf16" and installed and gpu)


def block_spec(config: TransformerConfig, index: int) -> Any:
    """megatron.core's spec of the layers of chunk `index`."""
    layer, norm = (_transformer_engine if config.transformer_impl == "transformer_engine" else _local)(config)
    return TransformerBlockSubmodules(layer_specs=[layer] * get_num_layers_to_build(config, index), layer_norm=norm)


def stage_layers(config: TransformerConfig) -> list[int]:
    """Layers of each pipeline stage, over all its chunks. Raises AssertionError where megatron.core cannot divide them so."""
    layout, stages = config.pipeline_model_parallel_layout, range(config.pipeline_model_parallel_size)
    if layout is not None:  # of which megatron.core tells this rank's stage only
        return [sum(chunk.count(LayerType.decoder) for chunk in layout.layout[stage]) for stage in stages]  # pyright: ignore[reportAttributeAccessIssue]
    chunks = range(config.virtual_pipeline_model_parallel_size or 1)
    return [sum(get_num_layers_to_build(config, chunk, stage) for chunk in chunks) for stage in stages]


def _local(config: TransformerConfig) -> tuple[Any, Any]:
    """A layer and the last norm; a class serves where megatron.core's annotations ask for a spec."""
    layer: Any = get_gpt_layer_local_spec(qk_layernorm=config.qk_layernorm, normalization="RMSNorm")
    parts, attention = layer.submodules, layer.submodules.self_attention.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
    attention.core_attention = CausalAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    return layer, RMSNorm


def _transformer_engine(config: TransformerConfig) -> tuple[Any, Any]:
    from megatron.core.extensions.transformer_engine import TENorm

    from megatron_atesd.model.te_attention import PackedTEAttention

    layer: Any = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm)
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = PackedTEAttention
    return layer, TENorm
