"""Parallel linear layers with LoRA on a frozen base: y = W·x + s·B·A·x, one A and B for each projection that Hugging Face and PEFT have.

Megatron fuses q, k, v (row blocks by query group) and gate, up into one product; their adapters stay apart, and their outputs are laid out
as the fused product's. At tensor parallelism:

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

from collections.abc import Mapping
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

    def laid_out(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Outputs [..., groups · width] of projections → [..., outputs] as the fused product has them; zero where a projection has none."""
        some = next(iter(parts.values()))
        none = {name: some.new_zeros(*some.shape[:-1], self.groups * width) for name, width in self.widths.items() if name not in parts}
        blocks = [(none | dict(parts))[name].unflatten(-1, (self.groups, width)) for name, width in self.widths.items()]
        return torch.cat(blocks, dim=-1).flatten(-2)

    @torch.no_grad()
    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A of all projections one above the other [R, inputs], and s·B [outputs, R] with its rows as the fused product has them.

        B·A is what the adapters add to this rank's weight, zero where a projection has none.
        """
        adapters = self.adapters
        a_RI = torch.cat([adapter.lora_A.weight for adapter in adapters.values()]).to(dtype)
        parts, start = {}, 0
        for name, adapter in adapters.items():
            b_rO = adapter.lora_B.weight.T.to(dtype) * adapter.settings.scaling
            parts[name] = F.pad(b_rO, (0, 0, start, len(a_RI) - start - len(b_rO)))
            start += len(b_rO)
        return a_RI, self.laid_out(parts).T.contiguous()

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
        return out.add_(self._added(input)) if self.lora_on else out

    def _added(self, x: Tensor) -> Tensor:
        """What the adapters add to the product: [S, B, inputs] → [S, B, outputs], of a row-parallel layer this rank's summand of it."""
        x, sequence_parallel = x.to(self.lora_dtype), bool(cast("Any", self).sequence_parallel)
        return self.laid_out({name: adapter(x, sequence_parallel) for name, adapter in self.adapters.items()})


class LocalColumn(Local):
    divided = "lora_B"


class LocalRow(Local):
    divided = "lora_A"
