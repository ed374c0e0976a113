"""The teacher's weights beside the student's: what an update makes of them, and that a pass leaves the student as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from megatron_atesd.distill.teacher import Teacher


class Student(torch.nn.Linear):
    """Any module will do: the teacher only touches its parameters, one of which is the vocabulary head."""

    precision: str | None = None

    def head_weight(self) -> torch.Tensor:
        return self.weight

    @contextmanager
    def computing_in(self, precision: str | None) -> Iterator[None]:
        self.precision = precision
        yield
        self.precision = None


def student(dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    return Student(3, 2, dtype=dtype)


def values(model: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def taught(teacher: Teacher) -> list[torch.Tensor]:
    with teacher.applied() as model:
        return values(model)


def move(model: Any, seed: int) -> list[torch.Tensor]:
    """Random new weights, written in place as an optimizer does."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.normal_()
    return values(model)


def test_ema_after_two_updates_is_the_formula() -> None:
    model, decay = student(torch.float32), 0.9
    first, teacher = values(model), Teacher(model, "ema", decay)
    second = move(model, 1)
    teacher.update()
    third = move(model, 2)
    teacher.update()
    for got, w0, w1, w2 in zip(taught(teacher), first, second, third, strict=True):
        torch.testing.assert_close(got, decay * (decay * w0 + (1 - decay) * w1) + (1 - decay) * w2)


def test_a_bf16_ema_moves_by_less_than_its_resolution_an_update() -> None:
    model = student(torch.bfloat16)
    teacher = Teacher(model, "ema", 0.999)
    for parameter in model.parameters():
        parameter.data.add_(0.5)
    before = taught(teacher)
    for _ in range(200):
        teacher.update()
    for got, w0, target in zip(taught(teacher), before, values(model), strict=True):
        expected = target.float() + 0.999**200 * (w0.float() - target.float())
        torch.testing.assert_close(got.float(), expected, rtol=2**-8, atol=1e-4)


def test_an_initial_teacher_stays_where_the_student_started() -> None:
    model = student()
    start, teacher = values(model), Teacher(model, "initial")
    move(model, 1)
    teacher.update()
    assert all(torch.equal(got, w0) for got, w0 in zip(taught(teacher), start, strict=True))


@pytest.mark.parametrize(("dtype", "offload"), [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)])
def test_a_refreshed_teacher_is_the_student_at_the_last_refresh(dtype: torch.dtype, offload: bool) -> None:
    model = student(dtype)
    start, teacher = values(model), Teacher(model, "refreshed", offload=offload)
    moved = move(model, 1)
    teacher.update()
    assert all(torch.equal(got, w0) for got, w0 in zip(taught(teacher), start, strict=True))
    teacher.refresh()
    move(model, 2)
    teacher.update()
    assert all(torch.equal(got, w1) for got, w1 in zip(taught(teacher), moved, strict=True))


@pytest.mark.parametrize("kind", ["initial", "ema"])
def test_applied_puts_the_students_storage_back_after_an_error(kind: Any) -> None:
    model = student()
    teacher = Teacher(model, kind)
    moved = move(model, 1)
    places = [parameter.data_ptr() for parameter in model.parameters()]
    with pytest.raises(RuntimeError, match="singular"), teacher.applied():
        torch.linalg.inv(torch.zeros(2, 2))
    assert [parameter.data_ptr() for parameter in model.parameters()] == places
    assert all(torch.equal(now, then) for now, then in zip(values(model), moved, strict=True))


def test_a_live_teacher_has_no_weights_of_its_own() -> None:
    model = student()
    teacher = Teacher(model, "live")
    moved = move(model, 1)
    teacher.update()
    assert (teacher.weights, teacher.average, teacher.sharded_state_dict()) == ([], [], {})
    assert all(torch.equal(got, new) for got, new in zip(taught(teacher), moved, strict=True))


def places(tensors: Any) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


@pytest.mark.parametrize("kind", ["initial", "ema"])
def test_a_pass_uses_the_kept_weights_themselves(kind: Any) -> None:
    teacher = Teacher(student(torch.bfloat16), kind)
    with teacher.applied() as model:
        assert places(model.parameters()) == places(teacher.weights)


def test_fp32_weights_are_their_own_average() -> None:
    teacher = Teacher(student(torch.float32), "ema")
    assert places(teacher.average) == places(teacher.weights)


@pytest.mark.parametrize(("kind", "dtype"), [("initial", torch.float32), ("ema", torch.float32), ("ema", torch.bfloat16)])
def test_an_offloaded_teacher_has_the_same_weights(kind: Any, dtype: torch.dtype) -> None:
    model = student(dtype)
    teachers = [Teacher(model, kind, 0.9, offload) for offload in (False, True)]
    for seed in (1, 2):
        move(model, seed)
        for teacher in teachers:
            teacher.update()
    for here, offloaded in zip(*(taught(teacher) for teacher in teachers), strict=True):
        assert torch.equal(here, offloaded)
    for here, offloaded in zip(*(teacher.average for teacher in teachers), strict=True):
        assert torch.equal(here, offloaded)


def test_an_offloaded_teachers_copies_end_with_the_pass() -> None:
    teacher = Teacher(student(), "initial", offload=True)
    with teacher.applied() as model:
        copies = [StorageWeakRef(parameter.untyped_storage()) for parameter in model.parameters()]
        assert not set(places(model.parameters())) & set(places(teacher.weights))
        assert not any(copy.expired() for copy in copies)
    assert all(copy.expired() for copy in copies)


@pytest.mark.parametrize("offload", [False, True])
def test_the_head_is_the_teachers_after_the_pass_too(offload: bool) -> None:
    model = student()
    start, teacher = values(model), Teacher(model, "initial", offload=offload)
    head = teacher.head_weight()
    move(model, 1)
    assert torch.equal(head, start[0])


def test_an_offloaded_teacher_brings_nothing_but_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, brought = Teacher(student(), "initial", offload=True), []
    monkeypatch.setattr(teacher, "_bring", lambda kept, device: brought.append(kept))
    teacher.head_weight()
    assert places(brought) == places(teacher.weights[:1])


def test_the_head_of_a_live_teacher_is_the_students() -> None:
    model = student()
    assert Teacher(model, "live").head_weight().data_ptr() == model.weight.data_ptr()


def test_a_device_without_room_for_the_teacher_leaves_the_student_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    model = student()
    teacher, students = Teacher(model, "initial", offload=True), places(model.parameters())
    monkeypatch.setattr(teacher, "_bring", Mock(side_effect=[torch.zeros(2, 3, dtype=torch.float64), torch.OutOfMemoryError()]))
    with pytest.raises(torch.OutOfMemoryError), teacher.applied():
        pytest.fail("the second weight must not fit")
    assert places(model.parameters()) == students


def test_a_pass_computes_in_the_teachers_precision_and_ends_with_it():
    model = student()
    with Teacher(model, "initial", precision="fp8_blockwise").applied():
        assert model.precision == "fp8_blockwise"
    assert model.precision is None
