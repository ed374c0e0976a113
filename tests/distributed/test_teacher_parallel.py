"""A saved teacher is the same teacher, bit for bit, at any other layout and with or without offload."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values

from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.checkpoint.reading import model_state, read_folder, write_folder
from megatron_atesd.distill.teacher import Teacher
from megatron_atesd.model.gpt import HiddenStateGPT, build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.megatron_config import DTYPES, transformer_config
from megatron_atesd.model.trained import MODEL_PREFIX
from megatron_atesd.parallel.session import parallel_session
from tests.support.distill_case import save_models
from tests.support.launch import run_distributed

Kind = Literal["initial", "ema"]
Layout = tuple[int, int]  # TP, PP; DP is what is left of the processes
Case = tuple[Kind, str]
TEACHERS: list[Case] = [("ema", "bf16"), ("ema", "fp32"), ("initial", "bf16")]


def new_model(folder: Path, layout: Layout, dtype: str) -> HiddenStateGPT:
    """With random weights."""
    architecture = read_architecture(folder / "student")
    return build_model(architecture, transformer_config(architecture, *layout, False, dtype))


def move(model: HiddenStateGPT, update: int) -> None:
    """What an optimizer might do, weight by weight, so that every layout does the same."""
    for parameter in model.parameters():
        parameter.data.mul_(1 + 0.1 * update).sub_(0.01)


def moved_teacher(folder: Path, layout: Layout, kind: Kind, dtype: str) -> tuple[HiddenStateGPT, Teacher]:
    """A student and its teacher after three updates."""
    model = new_model(folder, layout, dtype)
    load_hf_weights(model, folder / "student")
    teacher = Teacher(model, kind, ema_decay=0.9)
    for update in range(3):
        move(model, update)
        teacher.update()
    return model, teacher


def checkpoint(folder: Path, kind: Kind, dtype: str) -> Path:
    return folder / f"{kind}-{dtype}"


def save(folder: Path, layout: Layout, cases: Sequence[Case]) -> None:
    with parallel_session(*layout):
        for kind, dtype in cases:
            model, teacher = moved_teacher(folder, layout, kind, dtype)
            state = {"model": model_state(model), "teacher": teacher.sharded_state_dict()}
            write_folder(checkpoint(folder, kind, dtype), state, folder / "student")


def differences(folder: Path, layout: Layout, cases: Sequence[Case]) -> list[str]:
    """What tells a loaded teacher from the one that was saved, at this layout."""
    found = []
    with parallel_session(*layout):
        for kind, dtype, offload in [*((*case, False) for case in cases), (*cases[0], True)]:
            expected, loaded = moved_teacher(folder, layout, kind, dtype), loaded_teacher(folder, layout, kind, dtype, offload)
            found += [f"{kind} {dtype} offload {offload}: {d}" for d in differences_of(*expected, *loaded)]
    return found


def loaded_teacher(folder: Path, layout: Layout, kind: Kind, dtype: str, offload: bool) -> tuple[HiddenStateGPT, Teacher]:
    model = new_model(folder, layout, dtype)
    teacher = Teacher(model, kind, ema_decay=0.9, offload=offload)
    state = {"model": model_state(model), "teacher": teacher.sharded_state_dict()}
    loaded = read_folder(checkpoint(folder, kind, dtype), state)
    model.load_state_dict({name.removeprefix(MODEL_PREFIX): value for name, value in loaded["model"].items()})
    teacher.load_state_dict(loaded["teacher"])
    return model, teacher


def differences_of(model: HiddenStateGPT, teacher: Teacher, new_model: HiddenStateGPT, new_teacher: Teacher) -> list[str]:
    found = []
    for moment in ("loaded", "after another update"):
        found += [f"{moment}: weight {i}" for i in unequal(weights(teacher), weights(new_teacher))]
        found += [f"{moment}: average {i}" for i in unequal(teacher.average, new_teacher.average)]
        for student, its_teacher in ((model, teacher), (new_model, new_teacher)):
            move(student, 3)
            its_teacher.update()
    return found


def weights(teacher: Teacher) -> list[torch.Tensor]:
    with teacher.applied() as model:
        return [parameter.detach().clone() for parameter in model.parameters()]


def unequal(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> list[int]:
    return [i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a.dtype != b.dtype or not torch.equal(a, b)]


def save_and_load(folder: Path, cases: Sequence[Case], saved_at: Layout, loaded_at: Sequence[Layout]) -> list[list[str]]:
    dist.init_process_group("gloo")
    save(folder, saved_at, cases)
    return [differences(folder, layout, cases) for layout in loaded_at]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_models(folder, "qwen3", tied=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cases", "saved_at", "loaded_at"), [(TEACHERS, (2, 1), [(1, 2), (1, 1)]), (TEACHERS[:1], (2, 2), [(1, 2)])], ids=["tp2", "tp2-pp2"]
)
def test_a_loaded_teacher_is_the_saved_one_at_every_layout(
    cases: list[Case], saved_at: Layout, loaded_at: list[Layout], models: Path
) -> None:
    world = saved_at[0] * saved_at[1]
    assert run_distributed(save_and_load, world, models, cases, saved_at, loaded_at) == [[[]] * len(loaded_at)] * world
    assert differences(models, (1, 1), cases) == []


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_what_is_saved_of_an_offloaded_teacher_is_safe_from_the_next_update(dtype: str, models: Path) -> None:
    """It lies in pinned memory, which a process that writes in the background shares."""
    with parallel_session():
        model = new_model(models, (1, 1), dtype)
        teacher = Teacher(model, "ema", ema_decay=0.9, offload=True)
        saved = [part.data for part in nested_values(teacher.sharded_state_dict()) if isinstance(part.data, torch.Tensor)]
        before = [value.clone() for value in saved]
        move(model, 3)
        teacher.update()
    assert unequal(saved, before) == []


@pytest.mark.parametrize(("kind", "dtype"), TEACHERS)
def test_the_saved_teachers_had_left_the_student(kind: Kind, dtype: str, models: Path) -> None:
    """Otherwise a teacher that starts from the loaded student would look right too."""
    with parallel_session():
        model, teacher = moved_teacher(models, (1, 1), kind, dtype)
        students = [parameter.detach() for parameter in model.parameters()]
        assert unequal(weights(teacher), students) == list(range(len(students)))


def test_a_bf16_average_is_more_than_its_rounded_weights(models: Path) -> None:
    """Otherwise a checkpoint of the rounded weights would do."""
    with parallel_session():
        _, teacher = moved_teacher(models, (1, 1), "ema", "bf16")
        rounded = [weight.float() for weight in teacher.weights]
        assert unequal(teacher.average, rounded) == list(range(len(rounded)))
        assert {weight.dtype for weight in weights(teacher)} == {DTYPES["bf16"]}
