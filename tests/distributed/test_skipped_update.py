"""A loss or gradient that is not finite on one rank: no rank moves anything, and training goes on as if that update had not been."""

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megatron_atesd.distill.step import distill_step
from megatron_atesd.parallel.groups import data_parallel_place
from megatron_atesd.parallel.session import parallel_session
from tests.support.distill_case import DIVERGENCE, examples, save_models
from tests.support.launch import run_distributed
from tests.support.student_session import Session, session

# name → TP size, parameter type, distributed optimizer, what rank 1's gradients are multiplied with, what its loss is
CASES = {
    "fp32": (1, "fp32", False, math.nan, 1.0),
    "bf16-distributed": (1, "bf16", True, math.inf, 1.0),
    "tensor": (2, "fp32", False, math.inf, 1.0),
    "loss": (1, "fp32", False, 1.0, math.nan),
}


@dataclass(frozen=True)
class Outcome:
    """One case on one rank: weights around the bad update, what its step returned, and weights after one more, beside a run without."""

    before: list[torch.Tensor]
    after: list[torch.Tensor]
    norm: float
    counted: int  # updates that the learning-rate schedule knows of
    gone_on: list[torch.Tensor]
    without: list[torch.Tensor]


def bad_update(student: Session, factor: float, loss: float) -> float:
    """The update of `Session.train` with rank 1's first gradient multiplied by `factor`; returns the norm."""
    first = next(iter(student.model.parameters()))
    hook = first.register_hook(lambda gradient: gradient * (factor if dist.get_rank() == 1 else 1.0))
    rank, size = data_parallel_place()
    student.optimization.zero_grad()
    distill_step(student.optimization.wrapped, student.model, student.teacher, examples(37)[rank::size], DIVERGENCE, micro_batch_tokens=1)
    hook.remove()
    return student.optimization.step(loss if dist.get_rank() == 1 else 1.0)[0]


def run_case(folder: Path, tensor: int, dtype: str, distributed: bool, factor: float, loss: float) -> Outcome:
    with parallel_session(tensor):
        student, other = (session(folder, tensor, dtype, distributed=distributed) for _ in range(2))
        student.train(1)
        before = student.weights()
        norm = bad_update(student, factor, loss)
        after, counted = student.weights(), student.optimization.scheduler.num_steps
        student.train(1)
        other.train(2)
        return Outcome(before, after, norm, counted, student.weights(), other.weights())


def run_cases(folder: Path) -> dict[str, Outcome]:
    dist.init_process_group("gloo")
    return {name: run_case(folder, *case) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Outcome]]:
    """By rank, then by case."""
    folder = tmp_path_factory.mktemp("models")
    save_models(folder, "qwen3", tied=True)
    return run_distributed(run_cases, 2, folder)


def differing(some: list[torch.Tensor], others: list[torch.Tensor]) -> list[int]:
    return [i for i, (one, other) in enumerate(zip(some, others, strict=True)) if not torch.equal(one, other)]


@pytest.mark.parametrize("case", CASES)
def test_no_rank_moves_student_teacher_or_schedule(case: str, outcomes: list[dict[str, Outcome]]) -> None:
    for rank in outcomes:
        assert differing(rank[case].after, rank[case].before) == []
        assert rank[case].counted == 1


@pytest.mark.parametrize("case", CASES)
def test_every_rank_knows_that_the_update_was_skipped(case: str, outcomes: list[dict[str, Outcome]]) -> None:
    assert [math.isnan(rank[case].norm) for rank in outcomes] == [True, True]


@pytest.mark.parametrize("case", CASES)
def test_training_goes_on_bit_for_bit_as_without_the_update(case: str, outcomes: list[dict[str, Outcome]]) -> None:
    """Weights, and what later steps show of it, the optimizer's moments."""
    for rank in outcomes:
        assert differing(rank[case].gone_on, rank[case].without) == []
        assert differing(rank[case].gone_on, rank[case].after) != []
