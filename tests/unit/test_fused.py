"""The fused projection + divergence equals the plain definition under autograd."""

import shutil
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_atesd.distill import fused
from megatron_atesd.distill.divergence import ClipMode, Divergence, Kind, divergence, divergence_terms, top_k_and_tail
from megatron_atesd.distill.fused import TokenStatistics, distill_loss

KINDS: tuple[Kind, ...] = ("forward_kl", "reverse_kl", "jsd")
CLIPS: tuple[tuple[float, ClipMode], ...] = ((0.0, "entry"), (0.05, "entry"), (0.05, "token"))
Values = Sequence[Tensor]


def inputs(tokens: int, vocabulary: int, hidden: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states [T, H] and head [V, H] of the student, then of the teacher."""
    random = torch.Generator().manual_seed(tokens * 1000 + vocabulary)
    shapes = ((tokens, hidden), (vocabulary, hidden)) * 2
    a, b, c, d = (torch.randn(shape, generator=random, dtype=torch.float64).to(dtype) for shape in shapes)
    return a, b, c, d


def reference(
    hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, token_weight: Tensor, setting: Divergence
) -> tuple[Tensor, ...]:
    """Loss, then the statistics in the order of TokenStatistics, from whole logits."""
    student = torch.log_softmax(hidden @ weight.t() / setting.temperature, -1)
    teacher = torch.log_softmax(teacher_hidden @ teacher_weight.t() / setting.temperature, -1)
    pair = top_k_and_tail(teacher, student, setting.top_k) if setting.top_k else (teacher, student)
    loss = (divergence(*pair, setting.kind, setting.clip, setting.beta, setting.clip_mode) * token_weight).sum()
    terms = divergence_terms(*pair, setting.kind, setting.beta)
    clip = setting.clip or float("inf")
    entry = setting.clip_mode == "entry"
    followed = (terms.clamp(max=clip) if entry else terms).sum(-1)
    clipped = ((terms > clip).any(-1) if entry else followed > clip).double()
    kl = (teacher.exp() * (teacher - student)).sum(-1)
    differs = (teacher.argmax(-1) != student.argmax(-1)).double()
    return loss, followed, kl, differs, student.exp().amax(-1), entropy(teacher), entropy(student), clipped


def entropy(log_probs: Tensor) -> Tensor:
    return -(log_probs.exp() * log_probs).sum(-1)


def value_and_gradients(function: Any, values: Values, token_weight: Tensor, setting: Divergence) -> tuple[Tensor, Tensor, Tensor]:
    """3 · loss and its gradients to the student's hidden states and head."""
    hidden, weight = values[0].clone().requires_grad_(), values[1].clone().requires_grad_()
    loss = 3.0 * function(hidden, weight, values[2], values[3], token_weight, setting)[0]
    loss.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return loss.detach(), hidden.grad, weight.grad


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest absolute error over the largest value expected."""
    return float((got.double() - expected).abs().max() / expected.abs().max())


@given(
    tokens=st.integers(1, 23),
    vocabulary=st.integers(2, 40),
    kind=st.sampled_from(KINDS),
    clip=st.sampled_from([0.0, 0.01, 0.3]),
    clip_mode=st.sampled_from(["entry", "token"]),
    chunk=st.integers(1, 9),
    temperature=st.sampled_from([0.7, 1.0, 1.1]),
    beta=st.sampled_from([0.2, 0.5, 0.9]),
    top_k=st.integers(0, 12),
    cache_bytes=st.sampled_from([1, 400, 2**19]),
)
@settings(max_examples=150)
def test_value_and_gradients_equal_the_definition(
    tokens: int,
    vocabulary: int,
    kind: Kind,
    clip: float,
    clip_mode: ClipMode,
    chunk: int,
    temperature: float,
    beta: float,
    top_k: int,
    cache_bytes: int,
) -> None:
    setting = Divergence(kind, beta, clip, temperature, chunk, min(top_k, vocabulary - 1), clip_mode=clip_mode)
    values, token_weight = inputs(tokens, vocabulary, 5), torch.linspace(0.1, 1.0, tokens, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "_CACHE_BYTES", cache_bytes)  # blocks of one row, of a few, of the whole chunk
        ours = value_and_gradients(distill_loss, values, token_weight, setting)
    for got, expected in zip(ours, value_and_gradients(reference, values, token_weight, setting), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()) + 1e-15)


@pytest.mark.parametrize(("kind", "clip", "top_k"), list(product(KINDS, CLIPS, (0, 7))), ids=str)
def test_fp32_is_within_1e_5_of_the_definition_in_fp64(kind: Kind, clip: tuple[float, ClipMode], top_k: int) -> None:
    setting = Divergence(kind, 0.3, clip[0], 1.1, chunk=40, top_k=top_k, clip_mode=clip[1])
    values, ones = inputs(97, 501, 16, torch.float32), torch.ones(97)
    exact = value_and_gradients(reference, tuple(v.double() for v in values), ones.double(), setting)
    for got, expected in zip(value_and_gradients(distill_loss, values, ones, setting), exact, strict=True):
        assert relative_error(got, expected) <= 1e-5


@pytest.mark.parametrize(("kind", "clip", "top_k"), list(product(KINDS, CLIPS, (0, 7))), ids=str)
def test_bf16_is_as_exact_as_bf16_logits_allow(kind: Kind, clip: tuple[float, ClipMode], top_k: int) -> None:
    """The plain definition on logits, and gradients of logits, rounded to bf16 is the measure: at most twice as far from fp64."""
    setting = Divergence(kind, 0.3, clip[0], chunk=40, top_k=top_k, clip_mode=clip[1])
    values, ones = inputs(97, 501, 16, torch.bfloat16), torch.ones(97)
    wide = tuple(v.double() for v in values)

    def rounded(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, *rest: Any) -> Any:
        def product_of(a: Tensor, b: Tensor) -> Tensor:
            exact = a @ b.t()
            if exact.requires_grad:
                exact.register_hook(lambda gradient: gradient.bfloat16().double())
            return exact + (exact.detach().bfloat16().double() - exact.detach())

        eye = torch.eye(len(weight), dtype=torch.float64)
        return reference(product_of(hidden, weight), eye, product_of(teacher_hidden, teacher_weight), eye, *rest)

    exact = value_and_gradients(reference, wide, ones.double(), setting)
    coarse = value_and_gradients(rounded, wide, ones.double(), setting)
    for got, measure, expected in zip(value_and_gradients(distill_loss, values, ones, setting), coarse, exact, strict=True):
        assert relative_error(got, expected) <= 2 * relative_error(measure, expected) + 2**-8


@pytest.mark.parametrize(("top_k", "clip", "clip_mode"), list(product((0, 5), (0.0, 0.05, 0.15), ("entry", "token"))), ids=str)
def test_statistics_are_of_the_whole_unclipped_distributions_but_those_of_the_clip(top_k: int, clip: float, clip_mode: ClipMode) -> None:
    hidden, head, noise, _ = inputs(11, 17, 4)
    values, weight = (hidden, head, hidden + noise, head), torch.ones(11, dtype=torch.float64)
    setting = Divergence("jsd", 0.5, clip, temperature=1.3, chunk=4, top_k=top_k, clip_mode=clip_mode)
    _, stats = distill_loss(*values, weight, setting)
    _, *expected = reference(*values, weight, setting)
    for field, value in zip(fields(TokenStatistics), expected, strict=True):
        torch.testing.assert_close(getattr(stats, field.name), value, rtol=1e-12, atol=1e-12, msg=lambda m, n=field.name: f"{n}: {m}")
    assert 0 < float(stats.disagreement_T.sum()) < 11
    assert (0 < float(stats.clipped_T.sum()) < 11) == (clip > 0)


@pytest.mark.parametrize(("kind", "clip", "top_k"), list(product(KINDS, CLIPS, (0, 3))), ids=str)
def test_identical_distributions_give_zero_and_no_gradient(kind: Kind, clip: tuple[float, ClipMode], top_k: int) -> None:
    hidden, weight, *_ = inputs(7, 19, 6, torch.float32)
    setting = Divergence(kind, 0.3, clip[0], temperature=1.1, top_k=top_k, clip_mode=clip[1])
    loss, *gradients = value_and_gradients(distill_loss, (hidden, weight, hidden, weight), torch.ones(7), setting)
    assert float(loss) == 0.0
    assert [float(gradient.abs().max()) for gradient in gradients] == [0.0, 0.0]


@pytest.mark.parametrize(("kind", "top_k", "clip"), list(product(KINDS, (0, 3), (0.0, 0.05))), ids=str)
def test_extreme_logits_stay_finite_and_right(kind: Kind, top_k: int, clip: float) -> None:
    values: Any = tuple(v * 60 for v in inputs(6, 12, 4, torch.float32))
    ones, setting = torch.ones(6), Divergence(kind, clip=clip, top_k=top_k, clip_mode="token")
    assert float((values[0] @ values[1].t()).abs().max()) > 1e4
    ours = value_and_gradients(distill_loss, values, ones, setting)
    exact = value_and_gradients(reference, tuple(v.double() for v in values), ones.double(), setting)
    for got, expected in zip(ours, exact, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()) + 1e-4)


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


def test_without_gradients_the_value_is_the_same() -> None:
    values, ones, setting = inputs(9, 15, 4), torch.ones(9, dtype=torch.float64), Divergence(clip=0.1, chunk=4)
    with torch.no_grad():
        measured = distill_loss(*values, ones, setting)[0]
    torch.testing.assert_close(3 * measured, value_and_gradients(distill_loss, values, ones, setting)[0], rtol=0, atol=0)


def test_without_gradients_none_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the head is a parameter, as a model's is."""
    calls: list[Any] = []
    monkeypatch.setattr(fused, "_add_product", lambda *arguments, **_: calls.append(arguments))
    hidden, head, teacher_hidden, teacher_head = inputs(9, 15, 4)
    ones = torch.ones(9, dtype=torch.float64)
    with torch.no_grad():
        distill_loss(hidden.requires_grad_(), head.requires_grad_(), teacher_hidden, teacher_head, ones, Divergence(chunk=4))
    assert calls == []


def test_gradients_of_bf16_states_add_up_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    totals: list[torch.dtype] = []
    monkeypatch.setattr(fused, "_add_product", lambda total, *_, **__: totals.append(total.dtype))
    value_and_gradients(distill_loss, inputs(9, 15, 4, torch.bfloat16), torch.ones(9), Divergence(chunk=4))
    assert totals == [torch.float32] * 3


class Sizes(TorchDispatchMode):
    """Bytes of what each operation gives back."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.mm):
            self.seen.append(out.nbytes)
        return out


def test_on_a_gpu_the_heads_gradient_takes_no_second_copy_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_rows", lambda matrix, limit: len(matrix))  # whole, as on a GPU
    hidden, head, teacher, teacher_head = (value.bfloat16() for value in inputs(4, 997, 64))
    with Sizes() as sizes:
        distill_loss(hidden.requires_grad_(), head.requires_grad_(), teacher, teacher_head, torch.ones(4), Divergence(chunk=2))
    assert max(sizes.seen) == 2 * 997 * 64  # the product and the rounded total, in bf16


def loss_and_hidden() -> tuple[Tensor, Tensor]:
    """A loss, and hidden states that it has a gradient for."""
    hidden, head, teacher_hidden, teacher_head = inputs(9, 15, 4)
    ones = torch.ones(9, dtype=torch.float64)
    return distill_loss(hidden.requires_grad_(), head, teacher_hidden, teacher_head, ones, Divergence())[0], hidden


def test_a_second_backward_is_refused() -> None:
    loss, _ = loss_and_hidden()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward only"):
        loss.backward()


def test_a_second_derivative_is_refused() -> None:
    loss, hidden = loss_and_hidden()
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(factor * loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


@pytest.mark.parametrize("short", ["teacher", "weights"])
def test_roles_of_different_lengths_are_refused(short: str) -> None:
    hidden, head, teacher_hidden, teacher_head = inputs(9, 15, 4)
    weights = torch.ones(9 - (short == "weights"), dtype=torch.float64)
    with pytest.raises(ValueError, match="same response tokens"):
        distill_loss(hidden, head, teacher_hidden[: 9 - (short == "teacher")], teacher_head, weights, Divergence())


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize(("top_k", "clip_mode"), [(0, "token"), (5, "entry")])
def test_compiled_gives_what_eager_gives(top_k: int, clip_mode: ClipMode) -> None:
    values, ones = inputs(10, 40, 6, torch.float32), torch.ones(10)
    setting = Divergence(clip=0.05, temperature=1.1, chunk=8, top_k=top_k, clip_mode=clip_mode)
    eager, compiled = setting, replace(setting, compile=True)
    pairs = zip(*(value_and_gradients(distill_loss, values, ones, setting) for setting in (compiled, eager)), strict=True)
    for got, expected in pairs:
        assert relative_error(got, expected.double()) <= 1e-5


def test_a_top_k_divergence_lies_below_the_whole_one_and_reaches_it_with_k() -> None:
    teacher, student = (torch.log_softmax(torch.randn(8, 30, generator=torch.Generator().manual_seed(i)), -1) for i in (1, 2))
    by_k = [divergence(*top_k_and_tail(teacher, student, k), "forward_kl") for k in (1, 5, 15, 29)]
    for lower, higher in zip(by_k, [*by_k[1:], divergence(teacher, student, "forward_kl") + 1e-6], strict=True):
        assert bool((lower <= higher).all())
    torch.testing.assert_close(by_k[-1], divergence(teacher, student, "forward_kl"))
