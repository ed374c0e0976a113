"""A trial step is the step it says, on every rank, and leaves no trace: for both optimizers, in fp32 and bf16, with and without overlap."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_atesd.distill.step import distill_step
from megatron_atesd.parallel.groups import data_parallel_place
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.train.trial_step import DAMPING, trial_step
from tests.support.distill_case import DIVERGENCE, examples, save_models
from tests.support.launch import run_distributed
from tests.support.student_session import Session, session

RMS = 1e-3
OPTIMIZERS = ("plain", "distributed", "overlapped")
CASES = [(dtype, optimizer, updates) for dtype in ("fp32", "bf16") for optimizer in OPTIMIZERS for updates in (0, 2)]


@dataclass(frozen=True)
class Tried:
    """One case on one rank: the weights before, inside and after, and the state that the trial must leave alone."""

    before: list[torch.Tensor]
    inside: list[torch.Tensor]
    after: list[torch.Tensor]
    moments_before: list[torch.Tensor]
    moments_after: list[torch.Tensor]
    next_as_without: bool
    expected: list[torch.Tensor]  # steps of the optimizer's own weights, by the formula and as made; only of the plain optimizer
    steps: list[torch.Tensor]


def try_all(folder: Path) -> list[Tried]:
    dist.init_process_group("gloo")
    return [try_one(folder, *case) for case in CASES]


def try_one(folder: Path, dtype: str, optimizer: str, updates: int) -> Tried:
    with parallel_session():
        distributed, overlap = optimizer != "plain", optimizer == "overlapped"
        tried, other = (session(folder, dtype=dtype, distributed=distributed, overlap=overlap) for _ in range(2))
        tried.train(updates)
        other.train(updates)
        tried.optimization.weights_ready()
        before, moments_before = tried.weights(), moments(tried)
        accumulate(tried)
        expected, start = (expected_steps(tried), main_weights(tried)) if optimizer == "plain" else ([], [])
        with trial_step(tried.optimization, RMS) as moved:
            assert moved
            tried.optimization.weights_ready()
            inside = tried.weights()
            steps = [one - other for one, other in zip(start, main_weights(tried), strict=False)]
        tried.optimization.weights_ready()
        after, moments_after = tried.weights(), moments(tried)
        for student in (tried, other):
            student.train(1)
            student.optimization.weights_ready()
        same = all(map(torch.equal, tried.weights(), other.weights()))
        return Tried(before, inside, after, moments_before, moments_after, same, expected, steps)


def accumulate(student: Session) -> None:
    """The gradient of the distillation loss, divided among the data-parallel ranks."""
    rank, size = data_parallel_place()
    student.optimization.zero_grad()
    distill_step(student.optimization.wrapped, student.model, student.teacher, examples(37)[rank::size], DIVERGENCE, micro_batch_tokens=1)


def expected_steps(student: Session) -> list[torch.Tensor]:
    """Of the plain optimizer, which holds whole weights: the step by its formula."""
    part = student.optimization.part
    part.prepare_grads()
    weights = part.get_parameters()
    g = torch.cat([weight.grad.flatten() for weight in weights])
    v = torch.cat([part.optimizer.state.get(weight, {}).get("exp_avg_sq", torch.zeros_like(weight)).flatten() for weight in weights])
    v = v if v.sum() > 0 else g.square()
    moving = g != 0
    d = g / (v.sqrt() + DAMPING * v[moving].mean().sqrt())
    d = d * RMS / d[moving].square().mean().sqrt()
    return [step.view_as(weight) for step, weight in zip(d.split([weight.numel() for weight in weights]), weights, strict=True)]


def main_weights(student: Session) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in student.optimization.part.get_parameters()]


def moments(student: Session) -> list[torch.Tensor]:
    part = student.optimization.part
    return [part.optimizer.state.get(weight, {}).get("exp_avg_sq", torch.zeros(0)).clone() for weight in part.get_parameters()]


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, int], list[Tried]]:
    folder = tmp_path_factory.mktemp("trial")
    save_models(folder, "qwen3", tied=True)
    ranks = run_distributed(try_all, 2, folder)
    return {case: [rank[i] for rank in ranks] for i, case in enumerate(CASES)}


@pytest.mark.parametrize("case", CASES)
def test_the_weights_come_back_bit_for_bit(tried: Any, case: tuple[str, str, int]) -> None:
    assert all(all(map(torch.equal, one.before, one.after)) for one in tried[case])


@pytest.mark.parametrize("case", CASES)
def test_the_moments_are_not_touched(tried: Any, case: tuple[str, str, int]) -> None:
    assert all(all(map(torch.equal, one.moments_before, one.moments_after)) for one in tried[case])


@pytest.mark.parametrize("case", CASES)
def test_the_next_update_is_the_one_without_a_trial(tried: Any, case: tuple[str, str, int]) -> None:
    assert all(one.next_as_without for one in tried[case])


@pytest.mark.parametrize("case", CASES)
def test_ranks_move_alike(tried: Any, case: tuple[str, str, int]) -> None:
    one, other = tried[case]
    assert all(map(torch.equal, one.inside, other.inside))


@pytest.mark.parametrize("updates", [0, 2])
def test_the_step_is_the_gradient_preconditioned_as_adam_does(tried: Any, updates: int) -> None:
    one = tried["fp32", "plain", updates][0]
    assert len(one.expected) > 10
    for step, expected in zip(one.steps, one.expected, strict=True):
        torch.testing.assert_close(step, expected, rtol=1e-3, atol=1e-3 * RMS)


@pytest.mark.parametrize("case", CASES)
def test_the_step_has_the_size_asked_for(tried: Any, case: tuple[str, str, int]) -> None:
    one = tried[case][0]
    students = slice(0, len(one.before) // 2)  # the teacher's follow, and stay
    moved = torch.cat([(b.float() - i.float()).flatten() for b, i in zip(one.before[students], one.inside[students], strict=True)])
    rms = math.sqrt(moved[moved != 0].square().mean()) if case[0] == "fp32" else float(moved.square().mean().sqrt())
    if case[0] == "fp32":
        assert rms == pytest.approx(RMS, rel=1e-3)
    else:  # the rounding adds its own noise
        assert RMS * 0.99 < rms < 3 * RMS


def test_rounding_at_random_moves_bf16_weights_by_the_step_on_average(tried: Any) -> None:
    """Against the step of the same gradient in fp32, whose weights started from the same rounded values it is the same direction."""
    one = tried["bf16", "plain", 0][0]
    before, inside = (torch.cat([w.float().flatten() for w in weights[: len(weights) // 2]]) for weights in (one.before, one.inside))
    spacing = 2.0 ** (before.abs().log2().floor() - 7)
    big = (spacing > 5 * RMS) & (before != 0)  # rounded to the nearest, none of these would move
    moved = (before - inside)[big]
    assert (moved != 0).float().mean() == pytest.approx(float((RMS / spacing[big]).mean()), rel=0.5)
