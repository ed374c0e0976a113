"""Floating-point operations of a step by formula (megatron_atesd/model/counts.py), and the matmul speed that they are compared with.

A backward through a matrix product costs two products of the forward's size. The vocabulary projection counts on response positions only.
"""

import time
from collections.abc import Sequence

import torch

from benchmarks.workload import Workload
from megatron_atesd.config.schema import LORA_TARGETS
from megatron_atesd.model.counts import forward_flops, layer_adapters, loss_flops, matrix_flops

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_SIDE = {"cpu": 1536, "cuda": 8192}  # rows and columns of the square matrices whose product gives the peak


def step_flops(workload: Workload, rank: int = 0, targets: Sequence[str] = LORA_TARGETS) -> float:
    """Teacher forward, student forward and backward, and the loss's four products.

    With adapters of a rank above 0, frozen matrices have no gradient, in the layers as in the head.
    """
    arch, student, teacher = workload.arch, workload.prompt_tokens + workload.response_tokens, workload.teacher_length
    layers, loss = forward_flops(arch, teacher) + 3 * forward_flops(arch, student), loss_flops(arch, workload.tokens)
    if rank:
        adapters = 2 * student * arch.layers * layer_adapters(arch, targets, rank, 1)
        layers, loss = layers - matrix_flops(arch, student) + 3 * adapters, loss * 3 / 4
    return workload.prompts * layers + loss


def matmul_peak(dtype: str, device: str, repeats: int = 5) -> float:
    """Operations a second of a large matrix product on this process's threads (best of `repeats`)."""
    side = _SIDE[device]
    a, b = (torch.randn(side, side, device=device).to(DTYPES[dtype]) for _ in range(2))
    out = torch.empty_like(a)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        torch.mm(a, b, out=out)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2.0 * side**3 / min(seconds)
