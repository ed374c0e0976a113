"""A target that mixes the probabilities of two readings: the loss against whole logits, at every divergence; what it refuses."""

import shutil
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_atesd.distill import fused
from megatron_atesd.distill.divergence import Divergence, Kind, divergence, top_k_and_tail
from megatron_atesd.distill.fused import distill_loss
from megatron_atesd.distill.target import Target

KINDS: tuple[Kind, ...] = ("forward_kl", "reverse_kl", "jsd")
TOKENS, VOCABULARY, HIDDEN = 11, 17, 4


def inputs(scale: float = 1.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Student's hidden states and head, both readings [2, T, H] and the teacher's head, token weights."""
    random = torch.Generator().manual_seed(3)
    shapes = ((TOKENS, HIDDEN), (VOCABULARY, HIDDEN), (2, TOKENS, HIDDEN), (VOCABULARY, HIDDEN))
    values = [(scale * torch.randn(shape, generator=random, dtype=torch.float64)).to(dtype) for shape in shapes]
    return *values, torch.linspace(0.1, 1.0, TOKENS, dtype=dtype)


def dense(hidden: Tensor, head: Tensor, readings: Tensor, teacher_head: Tensor, weights: Tensor, setting: Divergence) -> Tensor:
    """The loss from whole probabilities."""
    student = torch.log_softmax(hidden @ head.t() / setting.temperature, -1)
    first, second = torch.softmax(readings @ teacher_head.t() / setting.temperature, -1)
    target = ((1 - setting.target.weight) * first + setting.target.weight * second).log()
    pair = top_k_and_tail(target, student, setting.top_k) if setting.top_k else (target, student)
    return (divergence(*pair, setting.kind, setting.clip, setting.beta, setting.clip_mode) * weights).sum()


def value_and_gradients(function: Any, values: tuple[Tensor, ...], setting: Divergence) -> tuple[Tensor, ...]:
    hidden, head = (value.clone().requires_grad_() for value in values[:2])
    found = function(hidden, head, *values[2:], setting)
    loss = found[0] if isinstance(found, tuple) else found
    return loss.detach(), *torch.autograd.grad(loss, [hidden, head])


@pytest.mark.parametrize(("kind", "top_k", "cache_bytes"), list(product(KINDS, (0, 5), (1, 400, 2**19))), ids=str)
def test_value_and_gradients_equal_the_definition(kind: Kind, top_k: int, cache_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_CACHE_BYTES", cache_bytes)  # blocks of one row, of a few, of the whole chunk
    setting = Divergence(kind, 0.3, 0.05, 1.3, chunk=4, top_k=top_k, clip_mode="token", target=Target("mix_exposures", 0.3))
    for got, expected in zip(*(value_and_gradients(f, inputs(), setting) for f in (distill_loss, dense)), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("weight", "dtype"), list(product((0.0, 0.5), (torch.float32, torch.bfloat16))), ids=str)
def test_two_equal_readings_or_a_weight_of_0_give_the_first(weight: float, dtype: torch.dtype) -> None:
    hidden, head, readings, *rest = inputs(dtype=dtype)
    readings = readings if weight == 0 else readings[:1].expand(2, -1, -1)
    plain = value_and_gradients(distill_loss, (hidden, head, readings[0], *rest), Divergence(chunk=4))
    mixed = value_and_gradients(distill_loss, (hidden, head, readings, *rest), Divergence(chunk=4, target=Target("mix_exposures", weight)))
    tolerance = 1e-6 if dtype == torch.float32 else 2**-8  # of the gradients, rounded to bf16
    for got, expected in zip(mixed, plain, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def test_extreme_logits_stay_finite_and_right() -> None:
    setting = Divergence(target=Target("mix_exposures", 0.3))
    ours = value_and_gradients(distill_loss, inputs(60, torch.float32), setting)
    for got, expected in zip(ours, value_and_gradients(distill_loss, inputs(60), setting), strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_gives_what_eager_gives() -> None:
    setting = Divergence(clip=0.05, chunk=8, clip_mode="token", target=Target("mix_exposures", 0.3))
    found = [value_and_gradients(distill_loss, inputs(1, torch.float32), replace(setting, compile=c)) for c in (True, False)]
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_statistics_are_of_the_mix() -> None:
    hidden, head, readings, teacher_head, weights = inputs()
    setting = Divergence("jsd", chunk=4, target=Target("mix_exposures", 0.3))
    _, stats = distill_loss(hidden, head, readings, teacher_head, weights, setting)
    kl = dense(hidden, head, readings, teacher_head, torch.ones_like(weights), replace(setting, kind="forward_kl"))
    assert float(stats.kl_T.sum()) == pytest.approx(float(kl))


@pytest.mark.parametrize(("kind", "readings"), [("teacher", 2), ("mix_unaided", 2), ("mix_exposures", 1)])
def test_another_number_of_readings_than_the_target_has_is_refused(kind: Any, readings: int) -> None:
    hidden, head, both, teacher_head, weights = inputs()
    with pytest.raises(ValueError, match=f"target {kind} has {3 - readings} readings by the teacher, not {readings}"):
        distill_loss(hidden, head, both[:readings], teacher_head, weights, Divergence(target=Target(kind, 0.3)))
