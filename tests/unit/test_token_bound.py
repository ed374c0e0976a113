"""The clip by token keeps the direction of the gradient; the clip by entry can turn it round."""

from itertools import product

import pytest
import torch
from torch import Tensor

from megatron_atesd.config import DistillConfig
from megatron_atesd.distill.divergence import ClipMode, Divergence, Kind, bound_weights, divergence
from megatron_atesd.distill.fused import distill_loss
from megatron_atesd.train.metrics import entry_clip_warning

KINDS: tuple[Kind, ...] = ("forward_kl", "reverse_kl", "jsd")
TAU = 0.05


def value_and_gradient(teacher_TV: Tensor, student_TV: Tensor, kind: Kind, clip: float, clip_mode: ClipMode) -> tuple[Tensor, Tensor]:
    """Loss [T] of two sets of probabilities, and its gradient by the student's logits [T, V]."""
    logits_TV = student_TV.log().requires_grad_()
    loss_T = divergence(teacher_TV.log(), torch.log_softmax(logits_TV, -1), kind, clip, 0.3, clip_mode)
    (gradient_TV,) = torch.autograd.grad(loss_T.sum(), logits_TV)
    return loss_T.detach(), gradient_TV


def two_entries(*first: float) -> Tensor:
    """[T, 2], of the probability of the first entry."""
    return torch.tensor([[p, 1 - p] for p in first], dtype=torch.float64)


def grid() -> tuple[Tensor, Tensor]:
    """Teacher and student [T, 2]: the teacher's top entry is the first, the student gives it less."""
    pairs = [(p / 100, q / 100) for p, q in product(range(51, 100, 4), range(1, 99, 4)) if q < p]
    return two_entries(*(p for p, _ in pairs)), two_entries(*(q for _, q in pairs))


@pytest.mark.parametrize(("kind", "clip"), list(product(KINDS, (0.001, TAU, 2.0))), ids=str)
def test_the_token_bound_never_lowers_the_teachers_top_token(kind: Kind, clip: float) -> None:
    teacher, student = grid()
    _, gradient = value_and_gradient(teacher, student, kind, clip, "token")
    assert bool((gradient[:, 0] < 0).all())


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl"])
def test_the_entry_clip_lowers_it_on_part_of_the_grid(kind: Kind) -> None:
    teacher, student = grid()
    _, gradient = value_and_gradient(teacher, student, kind, TAU, "entry")
    assert 0.25 < float((gradient[:, 0] > 0).double().mean()) < 1


@pytest.mark.parametrize(
    ("clip", "clip_mode", "expected"),
    [
        (0.0, "entry", (-0.2, 0.2)),  # q - p
        (TAU, "entry", (0.16, -0.16)),  # the second entry alone is kept: q · 0.4 - (0, 0.4)
        (TAU, "token", (-0.2 * TAU / 0.0810930216, 0.2 * TAU / 0.0810930216)),  # KL = 0.6 log 1.5 + 0.4 log(2/3) = 0.2 log 1.5
    ],
)
def test_gradients_of_a_teacher_of_6_to_4_and_a_student_of_4_to_6(clip: float, clip_mode: ClipMode, expected: tuple[float, float]) -> None:
    _, gradient = value_and_gradient(two_entries(0.6), two_entries(0.4), "forward_kl", clip, clip_mode)
    assert gradient[0].tolist() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_token_bound_has_the_value_min_of_d_and_clip_and_the_gradient_of_d_scaled(kind: Kind) -> None:
    random = torch.Generator().manual_seed(1)
    teacher, student = (torch.randn(40, 11, generator=random, dtype=torch.float64).mul(0.4).softmax(-1) for _ in range(2))
    whole, full_gradient = value_and_gradient(teacher, student, kind, 0.0, "token")
    clip = float(whole.median())
    loss, gradient = value_and_gradient(teacher, student, kind, clip, "token")
    torch.testing.assert_close(loss, whole.clamp(max=clip), rtol=1e-12, atol=0)
    scale = torch.tensor([min(1.0, clip / d) for d in whole.tolist()], dtype=torch.float64)
    torch.testing.assert_close(gradient, scale[:, None] * full_gradient, rtol=1e-12, atol=1e-15)


def test_weights_of_a_bound_by_hand() -> None:
    """A divergence of equal distributions may come out a hair below 0."""
    divergence_T = torch.tensor([-1e-9, 0.0, 0.25, 0.5, 2.0], requires_grad=True)
    weights = bound_weights(divergence_T, Divergence(clip=0.5, clip_mode="token"))
    assert weights.tolist() == [1.0, 1.0, 1.0, 1.0, 0.25]
    assert not weights.requires_grad


@pytest.mark.parametrize("settings", [Divergence(clip=0.5), Divergence(clip_mode="token")])
def test_without_a_bound_by_token_all_weights_are_1(settings: Divergence) -> None:
    assert bound_weights(torch.tensor([0.1, 3.0]), settings).tolist() == [1.0, 1.0]


def head_of(*probabilities: Tensor) -> Tensor:
    """A head [V, T] that gives the states of `eye` these distributions [T, V]."""
    return torch.cat(probabilities).log().t().contiguous()


# p log(p/q): teacher .6 | .4, student .4 | .6 has .2433 and -.1622, in all .0811; .52 against .5 has .0204 and -.0196, in all .0008.
@pytest.mark.parametrize(
    ("clip", "clip_mode", "divergences", "clipped"),
    [
        (0.0, "entry", (0.0810930, 0.0008002), [0.0, 0.0]),
        (TAU, "entry", (TAU - 0.1621860, 0.0008002), [1.0, 0.0]),
        (TAU, "token", (0.0810930, 0.0008002), [1.0, 0.0]),
        (0.01, "entry", (0.01 - 0.1621860, 0.01 - 0.0195945), [1.0, 1.0]),  # an entry is above the clip, the token is not
        (0.01, "token", (0.0810930, 0.0008002), [1.0, 0.0]),
    ],
)
def test_statistics_of_the_clip_by_hand(clip: float, clip_mode: ClipMode, divergences: tuple[float, float], clipped: list[float]) -> None:
    teacher, student, eye = head_of(two_entries(0.6, 0.52)), head_of(two_entries(0.4, 0.5)), torch.eye(2, dtype=torch.float64)
    _, statistics = distill_loss(eye, student, eye, teacher, torch.ones(2), Divergence(clip=clip, clip_mode=clip_mode))
    assert statistics.divergence_T.tolist() == pytest.approx(divergences, abs=1e-6)
    assert statistics.clipped_T.tolist() == clipped


def test_weights_held_fixed_reproduce_the_gradient_of_the_bounded_loss() -> None:
    random = torch.Generator().manual_seed(2)
    hidden, head, teacher_hidden, teacher_head = (torch.randn(s, generator=random, dtype=torch.float64) for s in ((9, 4), (15, 4)) * 2)
    token_weight, bounded = torch.linspace(0.1, 1, 9, dtype=torch.float64), Divergence(clip=0.5, clip_mode="token")

    def loss_and_gradient(weight: Tensor, settings: Divergence) -> tuple[Tensor, Tensor, Tensor]:
        states = hidden.clone().requires_grad_()
        loss, statistics = distill_loss(states, head, teacher_hidden, teacher_head, weight, settings)
        loss.backward()
        assert states.grad is not None
        return loss.detach(), states.grad, statistics.divergence_T

    *expected, divergence_T = loss_and_gradient(token_weight, bounded)
    weights = bound_weights(divergence_T, bounded)
    assert 0 < int((weights < 1).sum()) < 9
    *fixed, _ = loss_and_gradient(token_weight * weights, Divergence(clip=0.0, clip_mode="token"))
    torch.testing.assert_close(fixed, expected, rtol=1e-12, atol=1e-12)


def test_the_clip_by_entry_is_warned_of_in_one_line() -> None:
    warning = entry_clip_warning(DistillConfig(clip=0.05, clip_mode="entry"))
    assert warning.startswith("distill.clip_mode entry: vocabulary entries above distill.clip 0.05 lose the teacher's pull")
    assert "\n" not in warning


@pytest.mark.parametrize("distill", [DistillConfig(clip=0.0, clip_mode="entry"), DistillConfig(clip=0.05, clip_mode="token")])
def test_where_no_entry_is_cut_there_is_no_warning(distill: DistillConfig) -> None:
    assert entry_clip_warning(distill) == ""
