"""Trainings of adapters: the first update is that of a full copy of the teacher, the base never moves, and a resumed run equals the
unbroken one, also at another layout."""

import re
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from safetensors.torch import load_file, save_file
from torch import Tensor

from checkpoints_convert.megatron_to_hf import convert
from megatron_atesd.config import load_config
from megatron_atesd.distill.teacher import Teacher
from megatron_atesd.errors import CheckpointError
from megatron_atesd.faults.state import checkpoint_state, differences, metrics, reproducible
from megatron_atesd.train.loop import train
from megatron_atesd.train.training_run import TrainingRun
from tests.support.launch import run_distributed
from tests.support.small_run import arguments, save_sharp_inputs

pytestmark = pytest.mark.slow

LORA = ["--lora.rank=4", "--optimizer.lr=0.01", "--run.updates=4", "--monitor.samples=0", "--exposure.probe_every=1"]
FIXED = ["--exposure.mode=fixed", "--exposure.fixed=0.8"]
RUNS = {
    "initial, TP": [*FIXED, "--distill.teacher=initial"],
    "EMA, DP, distributed optimizer": ["--parallel.tensor=1", "--optimizer.use_distributed_optimizer=true"],
    "aligned, PP, some targets, dropout": [
        *("--parallel.tensor=1", "--parallel.pipeline=2", "--distill.teacher=initial", "--lora.targets=[q_proj, down_proj]"),
        *("--lora.dropout=0.2", "--exposure.mode=aligned", "--exposure.progress=probe_nll", "--exposure.grid=3", "--exposure.hold=2"),
    ],
    "bf16 base, fp32 adapters, TP": [*FIXED, "--model.dtype=bf16", "--lora.dtype=fp32", "--distill.teacher=initial"],
    "bf16 adapters, CP, distributed optimizer": [
        *(*FIXED, "--model.dtype=bf16", "--distill.teacher=refreshed", "--distill.refresh_every=1"),
        *("--parallel.tensor=1", "--parallel.context=2", "--optimizer.use_distributed_optimizer=true"),
    ],
}
OVERLAP = ["--ddp.overlap_grad_reduce=true", "--ddp.overlap_param_gather=true"]
ALIGNED = ["--exposure.mode=aligned", "--exposure.progress=probe_nll", "--exposure.grid=3", "--exposure.hold=1"]
RUNS |= {
    f"aligned, DP{name}": [
        *("--parallel.tensor=1", "--distill.teacher=initial", "--optimizer.use_distributed_optimizer=true", *ALIGNED, *overlap)
    ]
    for name, overlap in {"": [], ", overlap": OVERLAP}.items()
}
STARTED = "from a PEFT folder, TP"
# Where "initial, TP" goes on from its second update.
OTHER_LAYOUTS = {
    "PP 2 × VP 2": ["--parallel.tensor=1", "--parallel.pipeline=2", "--parallel.virtual_pipeline=2"],
    "DP 2": ["--parallel.tensor=1"],
}


def run(inputs: Path, folder: Path, *overrides: str) -> None:
    with redirect_stdout(StringIO()):
        train(load_config([*arguments(inputs, folder, *LORA), *overrides]))


def frozen_weights(run: TrainingRun) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in run.model.named_parameters() if not p.requires_grad}


def all_runs(inputs: Path, folder: Path) -> dict[str, tuple[int, list[str]]]:
    """Every run, and a copy of it that goes on from its second update; of each, how many frozen weights this rank has, and those that
    are not what they were before the first update."""
    dist.init_process_group("gloo")
    moved: dict[str, tuple[int, list[str]]] = {}
    with pytest.MonkeyPatch.context() as patch:
        start, built = TrainingRun.__init__, list[tuple[TrainingRun, dict[str, Tensor]]]()

        def remembered(self: TrainingRun, *given: Any, **named: Any) -> None:
            start(self, *given, **named)
            built.append((self, frozen_weights(self)))

        patch.setattr(TrainingRun, "__init__", remembered)
        for name, overrides in RUNS.items():
            run(inputs, folder / name / "unbroken", *overrides)
            before, after = built[-1][1], frozen_weights(built[-1][0])
            moved[name] = len(after), [key for key in after if not torch.equal(after[key], before[key])]
            go_on(inputs, folder / name / "unbroken", folder / name / "resumed", *overrides)
        for name, overrides in OTHER_LAYOUTS.items():
            source = next(iter(RUNS))
            go_on(inputs, folder / source / "unbroken", folder / name, *RUNS[source], *overrides)
        from_adapters(inputs, folder, folder / next(iter(RUNS)) / "unbroken" / "checkpoints" / "step_4")
        full_copy(inputs, folder / "full copy", patch)
        run(inputs, folder / "all weights", *next(iter(RUNS.values())), "--lora.rank=0", "--run.updates=1")
        another_base(inputs, folder, folder / next(iter(RUNS)) / "resumed")
    return moved


def go_on(inputs: Path, source: Path, target: Path, *overrides: str) -> None:
    if dist.get_rank() == 0:
        shutil.copytree(source, target)
    dist.barrier()
    run(inputs, target, *overrides, "--checkpoint.resume=step_2")


def from_adapters(inputs: Path, folder: Path, checkpoint: Path) -> None:
    """A run that starts from what another has trained, and one that goes on from its second update."""
    if dist.get_rank() == 0:
        convert(checkpoint, folder / "peft")
    dist.barrier()
    overrides = [*FIXED, "--distill.teacher=initial", f"--lora.start={folder / 'peft'}"]
    run(inputs, folder / STARTED / "unbroken", *overrides)
    if dist.get_rank() == 0:
        (folder / "peft").rename(folder / "gone")
    dist.barrier()
    go_on(inputs, folder / STARTED / "unbroken", folder / STARTED / "resumed", *overrides[:-1])


def another_base(inputs: Path, folder: Path, run_dir: Path) -> None:
    """A run that is to go on from a base that is not its own, and from its own with another rank."""
    if dist.get_rank() == 0:
        shutil.copytree(inputs / "hf", folder / "other")
        tensors = load_file(folder / "other" / "model.safetensors")
        tensors["model.norm.weight"] += 1e-6
        save_file(tensors, folder / "other" / "model.safetensors", {"format": "pt"})
    dist.barrier()
    for said, override in {
        f"{folder / 'other'}: not the base that the adapters": f"--model.path={folder / 'other'}",
        "lora.rank is 8, but the run began with 4": "--lora.rank=8",
    }.items():
        with pytest.raises(CheckpointError, match=re.escape(said)):
            run(inputs, run_dir, *next(iter(RUNS.values())), override)
        parallel_state.destroy_model_parallel()  # a refusal leaves groups to the end of the process


def full_copy(inputs: Path, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """The run "initial, TP" with a teacher that is a copy of all that learns, as in a run that does not begin with new adapters."""
    patch.setattr("megatron_atesd.train.training_run.Teacher", lambda *given, **named: Teacher(*given, **named | {"new_adapters": False}))
    run(inputs, folder, *next(iter(RUNS.values())))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sharp_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def runs(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, tuple[int, list[str]]]]]:
    folder = tmp_path_factory.mktemp("runs")
    return folder, run_distributed(all_runs, 2, inputs, folder)


def state_of(folder: Path, step: int = 4) -> dict[str, Any]:
    return checkpoint_state(folder / "checkpoints" / f"step_{step}")


@pytest.mark.parametrize("name", [*RUNS, STARTED])
def test_a_resumed_run_equals_the_unbroken_one(name: str, runs: tuple[Path, Any]) -> None:
    folders = [runs[0] / name / arm for arm in ("unbroken", "resumed")]
    lines = [[reproducible(line) for line in metrics(folder)] for folder in folders]
    assert len(lines[0]) == 4
    assert lines[0] == lines[1]
    assert set(differences(*map(state_of, folders))) == {"/plain/run/config/checkpoint/resume"}


@pytest.mark.parametrize("name", RUNS)
def test_adapters_learn_and_only_they_are_saved(name: str, runs: tuple[Path, Any]) -> None:
    two, four = (state_of(runs[0] / name / "unbroken", step) for step in (2, 4))
    tensors = [key for key in four if key.startswith("/tensors/")]
    assert tensors
    assert all(".lora_" in key for key in tensors)
    learned = [key for key in tensors if key.startswith("/tensors/adapters.")]
    assert set(learned) <= set(differences(two, four))
    targets = 2 if "some targets" in name else 7
    assert len(learned) == 4 * targets * 2  # layers, projections, factors


@pytest.mark.parametrize("name", RUNS)
def test_the_base_never_moves(name: str, runs: tuple[Path, Any]) -> None:
    for rank in runs[1]:
        frozen, moved = rank[name]
        assert frozen >= 2 * 8  # of two layers at least: norms and products
        assert moved == []


def test_weights_that_other_ranks_update_are_waited_for(runs: tuple[Path, Any]) -> None:
    """The passes right after a step, the probe's and those of an aligned choice, see the gathered adapters."""
    plain, overlapped = (metrics(runs[0] / name / "unbroken") for name in ("aligned, DP", "aligned, DP, overlap"))
    assert [reproducible(line) for line in plain] == [reproducible(line) for line in overlapped]


def test_a_run_that_starts_from_adapters_has_them_as_its_teacher(runs: tuple[Path, Any]) -> None:
    started = load_file(runs[0] / "gone" / "adapter_model.safetensors")
    state = state_of(runs[0] / STARTED / "unbroken")
    kept, student = (
        {name.removeprefix(f"/tensors/{part}."): value for name, value in state.items() if name.startswith(f"/tensors/{part}.")}
        for part in ("teacher", "adapters")
    )
    expected = {name.removeprefix("base_model.model."): value for name, value in started.items()}
    assert differences(kept, expected) == []
    assert set(differences(student, expected)) == set(expected)


@pytest.mark.parametrize("layout", OTHER_LAYOUTS)
def test_a_checkpoint_goes_on_at_another_layout(layout: str, runs: tuple[Path, Any]) -> None:
    old, new = (metrics(folder) for folder in (runs[0] / next(iter(RUNS)) / "unbroken", runs[0] / layout))
    names = ("distill/loss", "distill/kl", "optim/grad_norm", "probe/nll", "rollout/length")
    for line, other in zip(old[2:], new[2:], strict=True):
        assert [other[name] for name in names] == pytest.approx([line[name] for name in names], rel=1e-4)


def test_the_base_as_teacher_is_a_copy_of_the_start_bit_for_bit(runs: tuple[Path, Any]) -> None:
    base, copied = (metrics(folder) for folder in (runs[0] / next(iter(RUNS)) / "unbroken", runs[0] / "full copy"))
    assert [reproducible(line) for line in base] == [reproducible(line) for line in copied]
    assert base[-1]["distill/kl"] > 1e-3
    kept = state_of(runs[0] / "full copy")
    assert any(name.startswith("/tensors/teacher.") for name in kept)
    student = state_of(runs[0] / next(iter(RUNS)) / "unbroken")
    assert differences(*({k: v for k, v in s.items() if k.startswith("/tensors/adapters.")} for s in (kept, student))) == []


def test_the_first_update_starts_from_the_base_s_logits(runs: tuple[Path, Any]) -> None:
    """A training of all weights has the same loss then, and the same rollouts; its gradients are others."""
    lora, whole = (metrics(runs[0] / name)[0] for name in (f"{next(iter(RUNS))}/unbroken", "all weights"))
    names = ("distill/loss", "distill/kl", "distill/teacher_entropy", "student/entropy", "rollout/length")
    assert [lora[name] for name in names] == pytest.approx([whole[name] for name in names], rel=1e-5)
    assert lora["optim/grad_norm"] != pytest.approx(whole["optim/grad_norm"], rel=0.01)
