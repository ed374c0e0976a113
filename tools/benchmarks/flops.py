"""Floating-point operations of a step by formula, and the matmul speed that they are compared with.

A multiply-add is two operations; a backward through a matrix product costs two products of the forward's size. Counted are the products
with weights, the attention's two products (causal half) and the vocabulary projection on response positions only. Elementwise work,
normalisation, softmax and the optimizer are not counted, nor is anything that is computed twice.
"""

import time

import torch

from benchmarks.workload import Workload

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_SIDE = {"cpu": 1536, "cuda": 8192}  # rows and columns of the square matrices whose product gives the peak


def step_flops(workload: Workload) -> float:
    """Teacher forward, student forward and backward, and the loss's four products."""
    student, teacher = workload.prompt_tokens + workload.response_tokens, workload.teacher_length
    return workload.prompts * (_forward(workload, teacher) + 3 * _forward(workload, student)) + loss_flops(
        workload.tokens, workload.hidden, workload.vocabulary
    )


def loss_flops(tokens: int, hidden: int, vocabulary: int) -> float:
    """Logits of teacher and student, the gradients of hidden states and of the head: four products of T × H × V."""
    return 4 * 2.0 * tokens * hidden * vocabulary


def _forward(workload: Workload, length: int) -> float:
    """The layers over one sequence."""
    width = workload.heads * workload.head_size
    projections = workload.hidden * (2 * width + 2 * workload.query_groups * workload.head_size)
    weights = projections + 3 * workload.hidden * workload.ffn
    attention = 2 * 2 * width * length * (length + 1) // 2
    return float(workload.layers * (2 * length * weights + attention))


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
