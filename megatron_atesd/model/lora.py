"""LoRA on a model: freeze it and add adapters (lora_layers.py), switch them off, name them as PEFT does."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_atesd.errors import ConfigError
from megatron_atesd.model.chunk import ModelChunk
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.lora_adapter import Adapter, LoraSettings
from megatron_atesd.model.lora_layers import PROJECTIONS, AdaptedLinear, LocalColumn, LocalRow
from megatron_atesd.model.lora_te import OutsideColumn, OutsideRow
from megatron_atesd.model.spec import stage_layers

# By name: Transformer Engine's exist only where it is installed.
_KINDS: dict[str, type[AdaptedLinear]] = {
    "ColumnParallelLinear": LocalColumn,
    "RowParallelLinear": LocalRow,
    "TELayerNormColumnParallelLinear": OutsideColumn,
    "TEColumnParallelLinear": OutsideColumn,
    "TERowParallelLinear": OutsideRow,
}
_HF_BLOCKS = {"self_attention": "self_attn", "mlp": "mlp"}
_NAME = re.compile(r"decoder\.layers\.(\d+)\.(\w+)\.\w+\.lora\.(\w+\.lora_[AB]\.weight)")


def add_adapters(model: HiddenStateGPT, settings: LoraSettings, seed: int = 1) -> None:
    """Freeze the model and give its target projections adapters that change nothing yet. To be called after the base is loaded.

    Raises ConfigError for layers of other kinds than megatron.core's own and Transformer Engine's, and for a part without layers.
    """
    _check_that_all_have_layers(model)
    model.requires_grad_(False)
    for chunk in model.chunks:
        for number, layer in enumerate(cast("Any", chunk).decoder.layers, start=chunk.first_layer):
            for place, projections in PROJECTIONS.items():
                if any(name in settings.targets for name in projections):
                    linear = layer.get_submodule(place)
                    _adapt(linear, place, model.config, settings)
                    for name, adapter in linear.adapters.items():
                        adapter.reset(f"{seed} {number} {name}")
        _let_recompute_see_adapters(chunk)


def _check_that_all_have_layers(model: HiddenStateGPT) -> None:
    """megatron.core builds no optimizer without parameters, and only layers have adapters. Every rank sees every stage."""
    stages, chunks = stage_layers(model.config), [len(cast("Any", chunk).decoder.layers) for chunk in model.chunks]
    if not all((*stages, *chunks)):
        what = f"pipeline stages have {stages} layers" if not all(stages) else f"the chunks of a pipeline stage have {chunks} layers"
        raise ConfigError(f"{what}, and LoRA has nothing to train without any; change megatron.pipeline_model_parallel_layout")


def _adapt(linear: Any, place: str, config: TransformerConfig, settings: LoraSettings) -> None:
    """Make the module at `place` of a layer an AdaptedLinear of its own class, with new adapters for the targets among its projections.

    Raises ConfigError for a module that is none of megatron.core's parallel linear layers.
    """
    kind = _KINDS.get(type(linear).__name__)
    if kind is None:
        raise ConfigError(f"LoRA has no adapter for {type(linear).__name__} ({place}); set model.attention to sdpa")
    linear.__class__ = _with_adapters(kind, type(linear))
    outputs, inputs = linear.weight.shape
    linear.groups, linear.widths = _blocks(place, config, outputs)
    linear.lora_on, linear.lora = True, torch.nn.ModuleDict()
    for name, width in linear.widths.items():
        if name in settings.targets:
            adapter = Adapter(inputs, linear.groups * width, kind.divided, settings, linear, linear.tensor_ranks)
            linear.lora[name] = adapter.train(linear.training)


@cache
def _with_adapters(kind: type[AdaptedLinear], base: type) -> type:
    return type(f"Adapted{base.__name__}", (kind, base), {})


def _blocks(place: str, config: TransformerConfig, outputs: int) -> tuple[int, dict[str, int]]:
    """Blocks of a layer's `outputs` rows on this rank, and the rows of each projection in a block: a query group is a block of q, k, v."""
    projections = PROJECTIONS[place]
    if len(projections) < 3:
        return 1, dict.fromkeys(projections, outputs // len(projections))
    heads, head_size = config.num_attention_heads // cast("int", config.num_query_groups), cast("int", config.kv_channels)
    return outputs // ((heads + 2) * head_size), dict(zip(projections, (heads * head_size, head_size, head_size), strict=True))


def _let_recompute_see_adapters(chunk: ModelChunk) -> None:
    """A recomputed layer gives its parameters gradients only where its input asks for one; a frozen embedding's output would not."""

    def ask(embedding: torch.nn.Module, inputs: Any, hidden: Tensor) -> None:
        if torch.is_grad_enabled() and chunk.config.recompute_granularity is not None:
            hidden.requires_grad_()

    if chunk.pre_process:
        cast("Any", chunk).embedding.register_forward_hook(ask)


@contextmanager
def adapters_off(model: torch.nn.Module) -> Iterator[None]:
    """Passes inside are the base's, bit for bit: the teacher's. A backward belongs outside, since it may compute layers again."""
    layers = [module for module in model.modules() if isinstance(module, AdaptedLinear)]
    before = [layer.lora_on for layer in layers]
    try:
        for layer in layers:
            layer.lora_on = False
        yield
    finally:
        for layer, on in zip(layers, before, strict=True):
            layer.lora_on = on


def adapted_weights(model: HiddenStateGPT) -> dict[str, AdaptedLinear]:
    """This rank's layers with adapters, by the name of their weight in the whole model."""
    return {c.whole_name(f"{name}.weight"): m for c in model.chunks for name, m in c.named_modules() if isinstance(m, AdaptedLinear)}


def peft_name(name: str) -> str | None:
    """PEFT's name (without its base_model.model.) of the parameter that is `name` in the whole model; None of one that is no adapter's.

    decoder.layers.3.self_attention.linear_qkv.lora.q_proj.lora_A.weight → model.layers.3.self_attn.q_proj.lora_A.weight
    """
    match = _NAME.fullmatch(name)
    return f"model.layers.{match[1]}.{_HF_BLOCKS[match[2]]}.{match[3]}" if match else None


def adapter_parameters(model: HiddenStateGPT) -> dict[str, torch.nn.Parameter]:
    """What this rank has of each of its adapters' parameters, by PEFT's name.

    Where tensor_model_parallel is set on one, PEFT's tensor is those of the TP ranks, in their order, joined along its partition_dim.
    """
    named = ((peft_name(name), parameter) for name, parameter in model.named_parameters())
    return {name: parameter for name, parameter in named if name is not None}
