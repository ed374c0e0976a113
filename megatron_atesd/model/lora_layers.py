"""Parallel linear layers with LoRA on a frozen base: y = W·x + s·B·A·x, one A and B for each projection that Hugging Face and PEFT have.

Megatron fuses q, k, v (row blocks by query group) and gate, up into one product. Their adapters stay apart, and are multiplied as one: all
A above one another, all B in the rows of the fused product, zero where a row is another projection's. At tensor parallelism:

    base              A [rank, inputs]        B [outputs, rank]
    column-parallel   whole on every rank     its rows, as the base
    row-parallel      its columns, as inputs  whole on every rank

megatron.core's own layers let the adapters join inside, and a forward has no collective more than the base's:

    base              the adapters' part joins                                 what is whole has here this rank's part of its gradient
    column-parallel   the base's input gather, and the sum of its input's      A: of this rank's outputs
                      gradient
    row-parallel      the base's output before that is summed over the ranks   B: of this rank's inputs

Without sequence parallelism (SP) autograd sums that part over TP: copy_to_tensor_model_parallel_region is no change forward, an all-reduce
backward. With SP the attribute `sequence_parallel` makes megatron.core's finalize_model_grads sum it, once an update. With SP the gradient
of A needs the gathered input, which is kept until the backward.

Transformer Engine's layers are in lora_te.py.
"""

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

from megatron_atesd.model.lora_adapter import Adapter

# Megatron's linear layer → the projections in it, in the order of its rows.
PROJECTIONS = {
    "self_attention.linear_qkv": ("q_proj", "k_proj", "v_proj"),
    "self_attention.linear_proj": ("o_proj",),
    "mlp.linear_fc1": ("gate_proj", "up_proj"),
    "mlp.linear_fc2": ("down_proj",),
}


class AdaptedLinear(torch.nn.Module):
    """A parallel linear layer with adapters, `lora`. Its own parameters keep their names.

    widths: rows that each projection has in each of the `groups` blocks of this rank's output. divided: the factor that TP divides.
    """

    divided: Literal["lora_A", "lora_B"]
    lora: torch.nn.ModuleDict
    lora_on: bool
    groups: int
    widths: dict[str, int]
    weight: Tensor

    @property
    def tensor_ranks(self) -> Any:
        """The process group of tensor parallelism. Transformer Engine has none in its own `tp_group` where it is alone."""
        return getattr(self, "_tp_group" if hasattr(self, "_tp_group") else "tp_group")

    @property
    def adapters(self) -> dict[str, Adapter]:
        """By projection, in the order of the rows."""
        return cast("dict[str, Adapter]", dict(self.lora.items()))

    @property
    def lora_dtype(self) -> torch.dtype:
        """Of the adapters, and of what they compute."""
        return next(iter(self.adapters.values())).settings.dtype

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A of all projections one above the other [R, inputs], and s·B [outputs, R] with its rows as the fused product has them.

        B·A is what the adapters add to this rank's weight, zero where a projection has none.
        """
        a_RI = torch.cat([adapter.lora_A() for adapter in self.adapters.values()]).to(dtype)
        blocks, start = [], 0
        for name, width in self.widths.items():
            if name not in self.adapters:
                blocks.append(a_RI.new_zeros(self.groups, width, len(a_RI)))
                continue
            b_Or = self.adapters[name].lora_B().to(dtype) * self.adapters[name].settings.scaling
            blocks.append(F.pad(b_Or, (start, len(a_RI) - start - b_Or.shape[1])).unflatten(0, (self.groups, width)))
            start += b_Or.shape[1]
        return a_RI, torch.cat(blocks, dim=1).flatten(0, 1)

    def narrow(self, x: Tensor, a_RI: Tensor, shared: bool) -> Tensor:
        """A·dropout(x) of all projections: [..., inputs] → [..., R], each with a dropout of its own; see Adapter.dropped."""
        adapters = list(self.adapters.values())
        if not (self.training and adapters[0].settings.dropout):
            return F.linear(x.to(self.lora_dtype), a_RI)
        parts = zip(adapters, a_RI.split([len(adapter.lora_A.weight) for adapter in adapters]), strict=True)
        return torch.cat([F.linear(adapter.dropped(x, shared), a_rI) for adapter, a_rI in parts], dim=-1)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """W + s·B·A of this rank, added in fp32, in W's dtype: what passes multiply by. W itself where the adapters are off."""
        if not self.lora_on:
            return self.weight.detach()
        a_RI, b_OR = self.factors(torch.float32)
        return torch.addmm(self.weight.float(), b_OR, a_RI).to(self.weight.dtype)


class Local(AdaptedLinear):
    """On megatron.core's own layers."""

    def _forward_impl(self, input: Tensor, weight: Tensor, **how: Any) -> Tensor:
        """What megatron.core's forward calls for the product, before it sums a row-parallel layer's over TP."""
        product: Any = getattr(super(), "_forward_impl")  # noqa: B009
        if how["sequence_parallel"]:
            input = gather_from_sequence_parallel_region(input, tensor_parallel_output_grad=True, group=self.tensor_ranks)
        elif how["allreduce_dgrad"]:
            input = copy_to_tensor_model_parallel_region(input, group=self.tensor_ranks)
        out = product(input, weight, **how | {"sequence_parallel": False, "allreduce_dgrad": False})
        # Off or on, the product has the same operands, strides included, on which torch's choice of a kernel and the last bits depend.
        return self._with_adapters(out, input) if self.lora_on else out

    def _with_adapters(self, out: Tensor, x: Tensor) -> Tensor:
        """out + s·B·A·dropout(x) [S, B, outputs], x [S, B, inputs]; of a row-parallel layer this rank's summand of it."""
        a_RI, b_OR = self.factors(self.lora_dtype)
        if not cast("Any", self).sequence_parallel:  # what is whole gets its gradient from all ranks here
            if self.divided == "lora_A":
                b_OR = copy_to_tensor_model_parallel_region(b_OR, group=self.tensor_ranks)
            else:
                a_RI = copy_to_tensor_model_parallel_region(a_RI, group=self.tensor_ranks)
        return added(out, self.narrow(x, a_RI, self.divided == "lora_B"), b_OR)


def added(out: Tensor, narrow: Tensor, b_OR: Tensor) -> Tensor:
    """out [..., outputs] + narrow [..., R] · Bᵀ in out's dtype; in one product where the types are the same."""
    if out.dtype != narrow.dtype:
        return (out + F.linear(narrow, b_OR)).to(out.dtype)
    return torch.addmm(out.flatten(0, -2), narrow.flatten(0, -2), b_OR.T).view_as(out)


class LocalColumn(Local):
    divided = "lora_B"


class LocalRow(Local):
    divided = "lora_A"
