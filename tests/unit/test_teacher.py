"""The teacher's weights beside the student's: what an update makes of them, and that a pass leaves the student as it was."""

from typing import Any

import pytest
import torch

from megatron_atesd.distill.teacher import Teacher


def student(dtype: torch.dtype = torch.float64) -> Any:
    """Any module will do: the teacher only touches its parameters."""
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2, dtype=dtype)


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
