"""LoRA on Transformer Engine's parallel linear layers (megatron.core.extensions.transformer_engine), recognised by name.

They do norm, gather, product and sum in one. Adapters stay outside and talk themselves, of [tokens, rank] numbers:

    base              over TP              forward                    backward        what is whole has here
    column-parallel   A·norm(x), no SP     nothing                    all-reduce      A: its gradient, as the others have it
                      A·norm(x), SP        all-gather of the tokens   reduce-scatter  A: the part of this rank's tokens
    row-parallel      A·x, no SP           all-reduce                 nothing         B: its gradient, as the others have it
                      A·x, SP              reduce-scatter             all-gather      B: the part of this rank's tokens

Without SP nothing is left to sum, with SP finalize_model_grads sums what is whole. Transformer Engine needs a GPU: what is known
of these layers comes from its source (2.20) and from stand-ins with its interface (tests/support/te_stand_ins.py); it has not computed.
"""

from typing import Any, cast

import torch.nn.functional as F
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from torch import Tensor

from megatron_atesd.model.lora_layers import AdaptedLinear, added


class Outside(AdaptedLinear):
    """On Transformer Engine's layers."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        out, bias = super().forward(x)
        return self._with_adapters(out, x) if self.lora_on else out, bias

    def set_activation_dtype(self, inp: Tensor) -> None:
        """Transformer Engine refuses parameters of another type than its input; adapters may be fp32 beside bf16."""
        self.allow_different_data_and_param_types = True
        cast("Any", super()).set_activation_dtype(inp)

    def _with_adapters(self, out: Tensor, x: Tensor) -> Tensor:
        """out + s·B·A·dropout(norm(x)) [S, B, outputs], x [S, B, inputs]: the tokens as the layer takes and gives them."""
        sequence_parallel = bool(cast("Any", self).sequence_parallel)
        a_RI, b_OR = self.factors(self.lora_dtype)
        narrow = self.narrow(self._normed(x), a_RI, self.divided == "lora_B" and not sequence_parallel)
        return added(out, self._over_tensor_ranks(narrow, sequence_parallel), b_OR)

    def _normed(self, x: Tensor) -> Tensor:
        """The product's input: with TELayerNormColumnParallelLinear after the norm, RMSNorm whose weight is around one."""
        gamma, layer = getattr(self, "layer_norm_weight", None), cast("Any", self)
        return x if gamma is None else F.rms_norm(x, gamma.shape, gamma, layer.eps)

    def _over_tensor_ranks(self, narrow: Tensor, sequence_parallel: bool) -> Tensor:
        raise NotImplementedError


class OutsideColumn(Outside):
    divided = "lora_B"

    def _over_tensor_ranks(self, narrow: Tensor, sequence_parallel: bool) -> Tensor:
        """A·x of all tokens; its gradient is of all ranks' outputs."""
        if sequence_parallel:
            return gather_from_sequence_parallel_region(narrow, tensor_parallel_output_grad=True, group=self.tensor_ranks)
        return copy_to_tensor_model_parallel_region(narrow, group=self.tensor_ranks)


class OutsideRow(Outside):
    divided = "lora_A"

    def _over_tensor_ranks(self, narrow: Tensor, sequence_parallel: bool) -> Tensor:
        """A·x of all inputs; with sequence parallelism of this rank's tokens."""
        if sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(narrow, group=self.tensor_ranks)
        return reduce_from_tensor_model_parallel_region(narrow, group=self.tensor_ranks)
