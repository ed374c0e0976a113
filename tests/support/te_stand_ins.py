"""Linear layers with the interface of megatron.core's on Transformer Engine, computing on a CPU: norm, gather, product and sum in one call.

What they have of Transformer Engine (2.20, transformer_engine/pytorch/module): attributes, which collectives a forward and a backward
make, what they return, and that a forward refuses parameters of another type than its input, those of submodules too.
"""

from abc import ABC
from typing import Any, cast

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.identity_op import IdentityOp
from torch import Tensor

from megatron_atesd.model.gpt import HiddenStateGPT


class _Module(torch.nn.Module, ABC):
    def __init__(self, local: Any) -> None:
        super().__init__()
        self.config, self.weight, self._tp_group = local.config, local.weight, local.tp_group
        self.tp_group, self.tp_size = (local.tp_group, local.tp_group.size()) if local.tp_group.size() > 1 else (None, 1)
        self.sequence_parallel = self.tp_size > 1 and local.config.sequence_parallel
        self.activation_dtype: torch.dtype | None = None

    def prepare_forward(self, inp: Tensor) -> None:
        self.allow_different_data_and_param_types = False
        self.set_activation_dtype(inp)

    def set_activation_dtype(self, inp: Tensor) -> None:
        if self.activation_dtype == inp.dtype:
            return
        if not self.allow_different_data_and_param_types:
            for name, parameter in self.named_parameters():
                if parameter.dtype != inp.dtype:
                    raise TypeError(f"Found input dtype: {inp.dtype} and {name!r} dtype: {parameter.dtype}")
        self.activation_dtype = inp.dtype


class TEColumnParallelLinear(_Module):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        self.prepare_forward(x)
        if self.sequence_parallel:
            x = gather_from_sequence_parallel_region(x, tensor_parallel_output_grad=True, group=self._tp_group)
        else:
            x = copy_to_tensor_model_parallel_region(x, group=self._tp_group)
        return F.linear(x, self.weight), None


class TELayerNormColumnParallelLinear(_Module):
    def __init__(self, local: Any, norm: Any) -> None:
        super().__init__(local)
        self.layer_norm_weight, self.eps, self.zero_centered_gamma = norm.weight, norm.eps, False

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        self.prepare_forward(x)
        return TEColumnParallelLinear.forward(cast("Any", self), F.rms_norm(x, x.shape[-1:], self.layer_norm_weight, self.eps))


class TERowParallelLinear(_Module):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        self.prepare_forward(x)
        out = F.linear(x, self.weight)
        if self.sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(out, group=self._tp_group), None
        return reduce_from_tensor_model_parallel_region(out, group=self._tp_group), None


def stand_in(model: HiddenStateGPT) -> None:
    """Give a local model such layers, around its own parameters. fc1 has its norm inside only in layers of odd numbers."""
    for chunk in model.chunks:
        for layer in cast("Any", chunk).decoder.layers:
            attention, mlp = layer.self_attention, layer.mlp
            attention.linear_qkv = TELayerNormColumnParallelLinear(attention.linear_qkv, layer.input_layernorm)
            layer.input_layernorm = IdentityOp()
            attention.linear_proj, mlp.linear_fc2 = TERowParallelLinear(attention.linear_proj), TERowParallelLinear(mlp.linear_fc2)
            if layer.layer_number % 2:
                mlp.linear_fc1 = TELayerNormColumnParallelLinear(mlp.linear_fc1, layer.pre_mlp_layernorm)
                layer.pre_mlp_layernorm = IdentityOp()
            else:
                mlp.linear_fc1 = TEColumnParallelLinear(mlp.linear_fc1)
