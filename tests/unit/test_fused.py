"""The fused projection + divergence equals the plain definition under autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_atesd.distill.divergence import Kind, divergence
from megatron_atesd.distill.fused import Divergence, distill_loss


def inputs(
    tokens: int, vocabulary: int, hidden: int, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(tokens * 1000 + vocabulary)

    def draw(rows: int) -> torch.Tensor:
        return torch.randn(rows, hidden, generator=random, dtype=torch.float64).to(dtype)

    return draw(tokens), draw(vocabulary), draw(tokens), draw(vocabulary)


def reference(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    teacher_hidden: torch.Tensor,
    teacher_weight: torch.Tensor,
    token_weight: torch.Tensor,
    setting: Divergence,
) -> tuple[torch.Tensor, ...]:
    student = torch.log_softmax(hidden @ weight.t() / setting.temperature, -1)
    teacher = torch.log_softmax(teacher_hidden @ teacher_weight.t() / setting.temperature, -1)
    loss = (divergence(teacher, student, setting.kind, setting.clip, setting.beta) * token_weight).sum()
    kl = (teacher.exp() * (teacher - student)).sum(-1)
    return loss, kl, (teacher.argmax(-1) != student.argmax(-1)).double(), student.exp().amax(-1)


@given(
    tokens=st.integers(1, 23),
    vocabulary=st.integers(2, 40),
    kind=st.sampled_from(["forward_kl", "reverse_kl", "jsd"]),
    clip=st.sampled_from([0.0, 0.01, 0.3]),
    chunk=st.integers(1, 9),
    temperature=st.sampled_from([0.7, 1.0, 1.1]),
    beta=st.sampled_from([0.2, 0.5, 0.9]),
)
@settings(max_examples=60, deadline=None)
def test_value_and_gradients_equal_the_definition(
    tokens: int, vocabulary: int, kind: Kind, clip: float, chunk: int, temperature: float, beta: float
) -> None:
    setting = Divergence(kind, beta, clip, temperature, chunk)
    values = inputs(tokens, vocabulary, 5)
    token_weight = torch.linspace(0.1, 1.0, tokens, dtype=torch.float64)
    gradients, losses = [], []
    for function in (distill_loss, reference):
        hidden, weight = values[0].clone().requires_grad_(), values[1].clone().requires_grad_()
        loss = function(hidden, weight, values[2], values[3], token_weight, setting)[0]
        (3.0 * loss).backward()
        losses.append(loss.detach())
        gradients.append((hidden.grad, weight.grad))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_statistics_are_of_the_unclipped_divergence() -> None:
    values, weight = inputs(11, 17, 4), torch.ones(11, dtype=torch.float64)
    setting = Divergence("jsd", 0.5, clip=1e-3, temperature=1.3, chunk=4)
    _, stats = distill_loss(*values, weight, setting)
    _, kl, differs, confidence = reference(*values, weight, setting)
    torch.testing.assert_close(stats.kl_T, kl)
    torch.testing.assert_close(stats.disagreement_T, differs)
    torch.testing.assert_close(stats.confidence_T, confidence)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_identical_distributions_give_zero_and_no_gradient(kind: Kind) -> None:
    hidden, weight, *_ = inputs(7, 19, 6, torch.float32)
    student, head = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss, stats = distill_loss(student, head, hidden, weight, torch.ones(7), Divergence(kind))
    loss.backward()
    assert student.grad is not None
    assert head.grad is not None
    assert abs(float(loss.detach())) <= (1e-6 if kind == "jsd" else 0.0)  # the mixture is formed in log space
    assert float(stats.kl_T.abs().max()) == 0.0
    assert float(student.grad.abs().max()) <= (1e-6 if kind == "jsd" else 0.0)
    assert float(head.grad.abs().max()) <= (1e-6 if kind == "jsd" else 0.0)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_extreme_logits_stay_finite_and_right(kind: Kind) -> None:
    a, b, c, d = (v * 60 for v in inputs(6, 12, 4, torch.float32))
    hidden, weight = a.clone().requires_grad_(), b.clone().requires_grad_()
    setting = Divergence(kind)
    loss, _ = distill_loss(hidden, weight, c, d, torch.ones(6), setting)
    loss.backward()
    expected = reference(a.double(), b.double(), c.double(), d.double(), torch.ones(6).double(), setting)[0]
    assert float((a @ b.t()).abs().max()) > 1e4
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-4)
    assert hidden.grad is not None
    assert bool(torch.isfinite(hidden.grad).all())


def test_padding_rows_are_outside_the_softmax() -> None:
    values, ones = inputs(5, 13, 4), torch.ones(5, dtype=torch.float64)
    student_head = torch.cat((values[1], 9 * torch.ones(3, 4))).requires_grad_()
    teacher_head = torch.cat((values[3], -9 * torch.ones(3, 4)))
    loss, _ = distill_loss(values[0], student_head, values[2], teacher_head, ones, Divergence(), valid=13)
    loss.backward()
    torch.testing.assert_close(loss, distill_loss(*values, ones, Divergence())[0])
    assert student_head.grad is not None
    assert float(student_head.grad[13:].abs().max()) == 0.0


def test_no_tokens_give_zero_loss_that_still_has_a_gradient_path() -> None:
    values = inputs(3, 9, 4)
    hidden = values[0][:0].requires_grad_()
    loss, stats = distill_loss(hidden, values[1].requires_grad_(), values[2][:0], values[3], torch.ones(0), Divergence())
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert stats.kl_T.shape == (0,)
    assert values[1].grad is not None
    assert float(values[1].grad.abs().max()) == 0.0
