"""The loss alone: distill_loss, the same with whole logits, and its matrix products with nothing around them; heads learn or are frozen."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.dense import dense_loss
from benchmarks.flops import DTYPES
from benchmarks.measurement import Measurement
from megatron_atesd.distill.fused import Divergence, distill_loss

LOSSES = {"fused": distill_loss, "compiled": distill_loss, "dense": dense_loss}


def loss_part(task: Measurement) -> Callable[[], None]:
    """The work to measure, with its inputs in memory: hidden states [T, H] and heads [V, H] of both roles."""
    torch.manual_seed(0)
    hidden_TH, teacher_hidden_TH = (draw(task.tokens, task) for _ in range(2))
    weight_VH, teacher_weight_VH = (draw(task.workload.vocabulary, task) * 0.05 for _ in range(2))
    method, frozen = task.contender.removesuffix("-frozen"), task.contender.endswith("-frozen")
    if method == "products":
        return products(hidden_TH, weight_VH, teacher_hidden_TH, teacher_weight_VH, task.chunk, frozen)
    token_weight_T = torch.full((task.tokens,), 1.0 / task.tokens, device=task.device)
    loss_function, settings = (
        LOSSES[method],
        Divergence(chunk=task.chunk, compile=method == "compiled"),
    )

    def work() -> None:
        student, head = hidden_TH.detach().requires_grad_(), weight_VH.detach().requires_grad_(not frozen)
        loss, _ = loss_function(student, head, teacher_hidden_TH, teacher_weight_VH, token_weight_T, settings)
        loss.backward()

    return work


def draw(rows: int, task: Measurement) -> Tensor:
    return torch.randn(rows, task.workload.hidden, device=task.device).to(DTYPES[task.dtype])


def products(
    hidden_TH: Tensor, weight_VH: Tensor, teacher_hidden_TH: Tensor, teacher_weight_VH: Tensor, chunk: int, frozen: bool
) -> Callable[[], None]:
    """Teacher's logits, student's logits, gradients of hidden states and, unless it is frozen, head, chunk by chunk into memory that is
    there already."""
    rows, columns = weight_VH.shape
    logits_CV = hidden_TH.new_empty(min(chunk, len(hidden_TH)), rows)
    d_hidden_CH, d_weight_VH = hidden_TH.new_empty(len(logits_CV), columns), torch.empty_like(weight_VH)

    def work() -> None:
        for hidden_CH, teacher_CH in zip(hidden_TH.split(chunk), teacher_hidden_TH.split(chunk), strict=True):
            out_CV, out_CH = logits_CV[: len(hidden_CH)], d_hidden_CH[: len(hidden_CH)]
            torch.mm(teacher_CH, teacher_weight_VH.t(), out=out_CV)
            torch.mm(hidden_CH, weight_VH.t(), out=out_CV)
            torch.mm(out_CV, weight_VH, out=out_CH)
            if not frozen:
                torch.mm(out_CV.t(), hidden_CH, out=d_weight_VH)

    return work
