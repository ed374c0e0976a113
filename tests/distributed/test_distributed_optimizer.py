"""The distributed optimizer, which keeps weights in one flat buffer: same training, teacher swaps that leave the buffer alone, resuming."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist

from megatron_atesd.checkpoint.reading import write_folder
from megatron_atesd.parallel.session import parallel_session
from tests.support.distill_case import save_models
from tests.support.launch import run_distributed
from tests.support.student_session import Kind, assert_close, session

CASES: list[tuple[str, Kind]] = [("fp32", "initial"), ("fp32", "ema"), ("bf16", "initial"), ("bf16", "ema")]


@dataclass(frozen=True)
class Trained:
    """One case on one rank, before and after three updates."""

    before: list[torch.Tensor]
    plain: list[torch.Tensor]
    distributed: list[torch.Tensor]
    outside_the_buffer: int  # parameters of the distributed optimizer that are no views of its buffer


def train_both(folder: Path) -> list[Trained]:
    """All cases, with the plain and with the distributed optimizer."""
    dist.init_process_group("gloo")
    return [train_case(folder, dtype, kind) for dtype, kind in CASES]


def train_case(folder: Path, dtype: str, kind: Kind) -> Trained:
    with parallel_session():
        plain, distributed = (session(folder, dtype=dtype, kind=kind, distributed=flag) for flag in (False, True))
        before = plain.weights()
        plain.train(3)
        distributed.train(3)
        (chunk,) = distributed.optimization.wrapped.children()
        buffers = {buffer.param_data.untyped_storage().data_ptr() for buffer in cast("Any", chunk).buffers}
        outside = sum(p.untyped_storage().data_ptr() not in buffers for p in distributed.model.parameters())
        return Trained(before, plain.weights(), distributed.weights(), outside)


def train_and_resume(folder: Path, name: str, dtype: str, **options: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Weights after four updates in one go, and of a new session that loaded the state after two of them. DP = world size."""
    with parallel_session():
        unbroken = session(folder, dtype=dtype, **options)
        unbroken.train(2)
        write_folder(folder / f"after_two_{name}", unbroken.state(loading=False), folder / "student")
        unbroken.train(2)
        resumed = session(folder, dtype=dtype, **options)
        resumed.load(folder / f"after_two_{name}")
        resumed.train(2)
        return unbroken.weights(), resumed.weights()


def resume_all(folder: Path) -> dict[str, tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """By case; also leaves in folder/at_tensor_2 what two more updates at TP=2 make of the fp32 checkpoint."""
    dist.init_process_group("gloo")
    results = {dtype: train_and_resume(folder, dtype, dtype) for dtype in ("fp32", "bf16")}
    results["padded buckets"] = train_and_resume(folder, "padded", "fp32", overlap=True, bucket_size=1000)
    with parallel_session(2):
        divided = session(folder, tensor=2)
        divided.load(folder / "after_two_fp32")
        divided.train(2)
        write_folder(folder / "at_tensor_2", divided.state(loading=False), folder / "student")
    return results


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_models(folder, "qwen3", tied=True)
    return folder


@pytest.fixture(scope="module")
def trained(models: Path) -> list[list[Trained]]:
    """By rank, then by case."""
    return run_distributed(train_both, 2, models)


@pytest.fixture(scope="module")
def resumed(models: Path) -> dict[str, tuple[list[torch.Tensor], list[torch.Tensor]]]:
    return run_distributed(resume_all, 2, models)[0]


def students(weights: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    return weights[: len(weights) // 2]


def teachers(weights: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    return weights[len(weights) // 2 :]


@pytest.mark.parametrize("case", range(len(CASES)), ids=["-".join(case) for case in CASES])
def test_three_updates_equal_the_plain_optimizers(case: int, trained: list[list[Trained]]) -> None:
    for rank in trained:
        assert_close(rank[case].distributed, rank[case].plain, 1e-6)


@pytest.mark.parametrize("case", range(len(CASES)), ids=["-".join(case) for case in CASES])
def test_every_weight_of_the_student_moved(case: int, trained: list[list[Trained]]) -> None:
    """Otherwise equal weights would say little."""
    for rank in trained:
        assert not any(
            torch.equal(now, then) for now, then in zip(students(rank[case].distributed), students(rank[case].before), strict=True)
        )


@pytest.mark.parametrize("case", range(len(CASES)), ids=["-".join(case) for case in CASES])
def test_only_an_ema_teacher_moved(case: int, trained: list[list[Trained]]) -> None:
    for rank in trained:
        same = [torch.equal(now, then) for now, then in zip(teachers(rank[case].distributed), teachers(rank[case].before), strict=True)]
        assert same == [CASES[case][1] == "initial"] * len(same)


def test_after_the_teachers_passes_every_parameter_is_in_the_optimizers_buffer(trained: list[list[Trained]]) -> None:
    assert [case.outside_the_buffer for rank in trained for case in rank] == [0] * 2 * len(CASES)


@pytest.mark.parametrize("case", ["fp32", "bf16", "padded buckets"])
def test_a_resumed_training_equals_the_unbroken_one_bit_for_bit(case: str, resumed: Any) -> None:
    unbroken, again = resumed[case]
    assert [i for i, (a, b) in enumerate(zip(unbroken, again, strict=True)) if not torch.equal(a, b)] == []


def test_a_checkpoint_goes_on_without_data_parallelism(resumed: Any, models: Path) -> None:
    with parallel_session():
        alone = session(models)
        alone.load(models / "after_two_fp32")
        alone.train(2)
        assert_close(alone.weights(), resumed["fp32"][0], 1e-5)


def test_a_checkpoint_goes_on_at_another_tensor_parallel_size(resumed: Any, models: Path) -> None:
    with parallel_session():
        gathered = session(models)
        gathered.load(models / "at_tensor_2")
        assert_close(gathered.weights(), resumed["fp32"][0], 1e-5)
