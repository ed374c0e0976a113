"""LoRA on a frozen base: y = W·x + s·B·A·x, one A and B for each projection that Hugging Face and PEFT have.

Megatron fuses q, k, v (row blocks by query group) and gate, up into one product; their adapters stay apart, and their outputs are laid out
as the fused product's. At tensor parallelism:

    base              A [rank, inputs]        B [outputs, rank]      the adapter's part joins
    column-parallel   whole on every rank     its rows, as the base  the base's input gather, and the sum of its input's gradient
    row-parallel      its columns, as inputs  whole on every rank    the base's output before that is summed over the ranks

So a forward has no collective more than the base's. What is whole on every rank gets there only this rank's part of its gradient. With
sequence parallelism the attribute `sequence_parallel` makes megatron.core's finalize_model_grads sum it over TP, once an update; without,
finalize_model_grads would not, and autograd does: copy_to_tensor_model_parallel_region is no change forward, an all-reduce backward.

With sequence parallelism the gradient of A needs the gathered input, which is kept until the backward.
"""

import hashlib
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear, get_cuda_rng_tracker
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region, gather_from_sequence_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_atesd.errors import ConfigError
from megatron_atesd.model.chunk import ModelChunk
from megatron_atesd.model.gpt import HiddenStateGPT

# Megatron's linear layer → the projections in it, in the order of its rows.
_PROJECTIONS = {
    "self_attention.linear_qkv": ("q_proj", "k_proj", "v_proj"),
    "self_attention.linear_proj": ("o_proj",),
    "mlp.linear_fc1": ("gate_proj", "up_proj"),
    "mlp.linear_fc2": ("down_proj",),
}
TARGETS = tuple(name for names in _PROJECTIONS.values() for name in names)
_HF_BLOCKS = {"self_attention": "self_attn", "mlp": "mlp"}
_NAME = re.compile(r"decoder\.layers\.(\d+)\.(\w+)\.\w+\.lora\.(\w+\.lora_[AB]\.weight)")


@dataclass(frozen=True)
class LoraSettings:
    """What PEFT's LoraConfig calls r, lora_alpha, lora_dropout, target_modules and use_rslora.

    dropout: of the adapters' input while training. dtype: of A and B, and of what they compute; PEFT keeps them in fp32 too.
    Raises ConfigError for values that are none.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = TARGETS
    rslora: bool = False
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"LoRA rank is {self.rank}, must be at least 1")
        if not 0 < self.alpha < math.inf:
            raise ConfigError(f"LoRA alpha is {self.alpha}, must be greater than 0")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"LoRA dropout is {self.dropout}, must be from 0 to below 1")
        unknown = [target for target in self.targets if target not in TARGETS]
        if unknown or not self.targets:
            raise ConfigError(f"LoRA targets are {list(self.targets)}; give one or more of {', '.join(TARGETS)}")

    @property
    def scaling(self) -> float:
        """s of W + s·B·A."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class Adapter(torch.nn.Module):
    """A and B of one projection on this TP rank: lora_A.weight [rank, inputs], lora_B.weight [outputs, rank].

    divided: which of them is this rank's part of a whole (its partition_dim says along which dimension), where the other is whole.
    """

    def __init__(self, inputs: int, outputs: int, divided: str, settings: LoraSettings, base: Any) -> None:
        super().__init__()
        self.settings, self.divided, self.base_group = settings, divided, base.tp_group
        place: Any = {"device": base.weight.device, "dtype": settings.dtype}
        self.lora_A = torch.nn.Linear(inputs, settings.rank, bias=False, **place)
        self.lora_B = torch.nn.Linear(settings.rank, outputs, bias=False, **place)
        for name, dimension in (("lora_A", 1), ("lora_B", 0)):
            weight: Any = getattr(self, name).weight
            set_tensor_model_parallel_attributes(weight, name == divided, dimension if name == divided else -1, 1)
            weight.sequence_parallel = name != divided and base.config.sequence_parallel

    def reset(self, seed: str) -> None:
        """As PEFT: A kaiming-uniform (a = √5), B zero. A is drawn whole from `seed` and then divided: the same at every TP × PP."""
        weight = self.lora_A.weight
        ranks, rank = (self.base_group.size(), self.base_group.rank()) if self.divided == "lora_A" else (1, 0)
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big"))
        whole = torch.empty(len(weight), weight.shape[1] * ranks)
        torch.nn.init.kaiming_uniform_(whole, a=math.sqrt(5), generator=generator)
        with torch.no_grad():
            weight.copy_(whole.chunk(ranks, dim=1)[rank])
            self.lora_B.weight.zero_()

    def forward(self, x: Tensor, sequence_parallel: bool) -> Tensor:
        """s·B·A·dropout(x): [..., inputs] → [..., outputs]; of a row-parallel base this rank's summand of it."""
        factors = {"lora_A": self.lora_A.weight, "lora_B": self.lora_B.weight}
        if not sequence_parallel:
            name = "lora_B" if self.divided == "lora_A" else "lora_A"
            factors[name] = copy_to_tensor_model_parallel_region(factors[name], group=self.base_group)
        x = self.dropped(x.to(self.settings.dtype))
        return F.linear(F.linear(x, factors["lora_A"]), factors["lora_B"]) * self.settings.scaling

    def dropped(self, x: Tensor) -> Tensor:
        """x, in training without a share. TP ranks drop the same of inputs they share; of its own, each by megatron.core's generator."""
        if not self.training or not self.settings.dropout:
            return x
        if self.divided == "lora_B":
            return F.dropout(x, self.settings.dropout)
        with cast("Any", get_cuda_rng_tracker()).fork():
            return F.dropout(x, self.settings.dropout)


class _Adapted(torch.nn.Module):
    """A parallel linear layer with adapters, `lora`. Its own parameters keep their names.

    widths: rows that each projection has in each of the `groups` blocks of this rank's output.
    """

    lora: torch.nn.ModuleDict
    lora_on: bool
    groups: int
    widths: dict[str, int]

    def _forward_impl(self, input: Tensor, weight: Tensor, **how: Any) -> Tensor:
        """What megatron.core's forward calls for the product, before it sums a row-parallel layer's over TP."""
        product: Any = getattr(super(), "_forward_impl")  # noqa: B009
        layer: Any = self
        if how["sequence_parallel"]:
            input = gather_from_sequence_parallel_region(input, tensor_parallel_output_grad=True, group=layer.tp_group)
        elif how["allreduce_dgrad"]:
            input = copy_to_tensor_model_parallel_region(input, group=layer.tp_group)
        out = product(input, weight, **how | {"sequence_parallel": False, "allreduce_dgrad": False})
        # Off or on, the product has the same operands, strides included, on which torch's choice of a kernel and the last bits depend.
        return out.add_(self._adapters(input)) if self.lora_on else out

    def _adapters(self, x: Tensor) -> Tensor:
        """Of all projections [S, B, inputs] → [S, B, outputs], in the layout of the fused product; zero where one has no adapter."""
        parts, sequence_parallel = [], bool(cast("Any", self).sequence_parallel)
        for name, width in self.widths.items():
            if name in self.lora:
                parts.append(self.lora[name](x, sequence_parallel).unflatten(-1, (self.groups, width)))
            else:
                parts.append(x.new_zeros(*x.shape[:-1], self.groups, width))
        return torch.cat(parts, dim=-1).flatten(-2)


class _AdaptedColumn(_Adapted, ColumnParallelLinear):
    pass


class _AdaptedRow(_Adapted, RowParallelLinear):
    pass


def add_adapters(model: HiddenStateGPT, settings: LoraSettings, seed: int = 1) -> None:
    """Freeze the model and give its target projections adapters that change nothing yet. To be called after the base is loaded.

    Nothing but calls of the modules knows the adapters: generation (model/decoding.py) multiplies by the base's weights itself.
    Raises ConfigError for layers that are not megatron.core's own (Transformer Engine's).
    """
    model.requires_grad_(False)
    for chunk in model.chunks:
        for number, layer in enumerate(cast("Any", chunk).decoder.layers, start=chunk.first_layer):
            for place, projections in _PROJECTIONS.items():
                if any(name in settings.targets for name in projections):
                    _adapt(layer.get_submodule(place), place, model.config, settings)
                    for name, adapter in layer.get_submodule(place).lora.items():
                        adapter.reset(f"{seed} {number} {name}")
        _let_recompute_see_adapters(chunk)


def _adapt(linear: Any, place: str, config: TransformerConfig, settings: LoraSettings) -> None:
    if type(linear) not in (ColumnParallelLinear, RowParallelLinear):
        raise ConfigError(f"LoRA has no adapter for {type(linear).__name__} ({place}); set model.attention to sdpa")
    column = isinstance(linear, ColumnParallelLinear)
    linear.__class__ = _AdaptedColumn if column else _AdaptedRow
    outputs, inputs = linear.weight.shape
    linear.groups, linear.widths = _blocks(place, config, outputs)
    linear.lora_on, linear.lora = True, torch.nn.ModuleDict()
    for name, width in linear.widths.items():
        if name in settings.targets:
            adapter = Adapter(inputs, linear.groups * width, "lora_B" if column else "lora_A", settings, linear)
            linear.lora[name] = adapter.train(linear.training)


def _blocks(place: str, config: TransformerConfig, outputs: int) -> tuple[int, dict[str, int]]:
    """Blocks of a layer's `outputs` rows on this rank, and the rows of each projection in a block: a query group is a block of q, k, v."""
    projections = _PROJECTIONS[place]
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
    layers = [module for module in model.modules() if isinstance(module, _Adapted)]
    before = [layer.lora_on for layer in layers]
    try:
        for layer in layers:
            layer.lora_on = False
        yield
    finally:
        for layer, on in zip(layers, before, strict=True):
            layer.lora_on = on


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
