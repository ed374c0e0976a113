"""x · Wᵀ without a gradient, as generation multiplies."""

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST = 2**21  # multiplications, below which the way to oneDNN takes longer than it saves


def product(x_TI: Tensor, weight_OI: Tensor) -> Tensor:
    """F.linear of [T, I] and [O, I] → [T, O]. On a CPU, fp32 goes to oneDNN (torch.ops.mkldnn._linear_pointwise) where torch has it.

    torch itself takes MKL, whose kernels on other makers' processors use half of their vector width, and less for few rows.
    """
    if _has_onednn(x_TI) and x_TI.numel() * len(weight_OI) >= _LEAST:
        return torch.ops.mkldnn._linear_pointwise(x_TI, weight_OI, None, "none", [], "")
    return F.linear(x_TI, weight_OI)


def _has_onednn(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu" and torch.backends.mkldnn.is_available()
