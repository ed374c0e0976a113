"""With each target, and a refreshed teacher, a resumed run equals the unbroken one; what each of them trains on."""

import shutil
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from megatron_atesd.config import load_config
from megatron_atesd.faults.state import checkpoint_state, differences, metrics, reproducible
from megatron_atesd.train.loop import train
from megatron_atesd.train.progress import Finished, Measured, ReferenceNLL
from tests.support.launch import run_distributed
from tests.support.small_run import arguments, save_inputs

pytestmark = pytest.mark.slow

FIXED = ["--exposure.mode=fixed", "--exposure.fixed=0.8"]
SETTINGS = {
    "teacher": [*FIXED],
    "mix of exposures, TP": [*FIXED, "--distill.target=mix_exposures", "--distill.mix_weight=0.3"],
    "mix of exposures, PP, live": [
        *(*FIXED, "--distill.target=mix_exposures", "--distill.mix_exposure=0.4", "--distill.teacher=live"),
        *("--parallel.tensor=1", "--parallel.pipeline=2"),
    ],
    "contrast, TP, EMA": [*FIXED, "--distill.target=mix_unaided", "--distill.mix_weight=-0.5"],
    "refreshed, TP": [
        *(*FIXED, "--distill.teacher=refreshed", "--distill.refresh_every=1", "--distill.target=mix_unaided"),
        *("--exposure.probe_every=1", "--checkpoint.every=1"),
    ],
    "mix with the start, aligned, bins": [
        *("--distill.target=mix_unaided", "--distill.teacher=initial", "--exposure.mode=aligned", "--exposure.progress=probe_nll"),
        *("--exposure.grid=3", "--exposure.hold=2", "--exposure.bins=2", "--exposure.difficulty=field", "--parallel.tensor=1"),
    ],
}
# Gains after updates 1 and 4. A run that goes on from 2 must know what the teacher's weights had: else it would see one after 3.
PROGRESS = [3.0, 2.0, 2.5, 2.2, 1.9]


def all_runs(inputs: Path, folder: Path) -> None:
    dist.init_process_group("gloo")
    for name, overrides in SETTINGS.items():
        with pytest.MonkeyPatch.context() as patch:
            if name.startswith("refreshed"):
                patch.setattr(ReferenceNLL, "measure", given_progress)
            both_runs(inputs, folder / name, overrides)


def given_progress(self: ReferenceNLL, finished: Finished) -> Measured:
    return PROGRESS[finished.update], {}


def both_runs(inputs: Path, folder: Path, overrides: Sequence[str]) -> None:
    """A run of four updates, and a copy that goes on from its second."""
    small = ("--run.updates=4", "--monitor.samples=0", *overrides)
    with redirect_stdout(StringIO()):
        train(load_config(arguments(inputs, folder / "unbroken", *small)))
        if dist.get_rank() == 0:
            shutil.copytree(folder / "unbroken", folder / "resumed")
        dist.barrier()
        train(load_config([*arguments(inputs, folder / "resumed", *small), "--checkpoint.resume=step_2"]))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run_distributed(all_runs, 2, save_inputs(tmp_path_factory.mktemp("inputs")), folder)
    return folder


@pytest.mark.parametrize("name", SETTINGS)
def test_a_resumed_run_equals_the_unbroken_one(name: str, runs: Path) -> None:
    folders = runs / name / "unbroken", runs / name / "resumed"
    lines = [[reproducible(line) for line in metrics(folder)] for folder in folders]
    assert len(lines[0]) == 4
    assert lines[0] == lines[1]
    assert set(differences(*(checkpoint_state(folder / "checkpoints" / "step_4") for folder in folders))) == {
        "/plain/run/config/checkpoint/resume"
    }


@pytest.mark.parametrize("arm", ["unbroken", "resumed"])
def test_a_refreshed_teacher_is_the_student_at_the_last_gain(arm: str, runs: Path) -> None:
    folder = runs / "refreshed, TP" / arm
    assert [line["distill/teacher_refreshed"] for line in metrics(folder)] == [1, 0, 0, 1]
    states = [checkpoint_state(folder / "checkpoints" / f"step_{step}") for step in range(1, 5)]
    for step, gain in ((1, 1), (2, 1), (3, 1), (4, 4)):
        teacher, student = (weights(states[n - 1], part) for n, part in ((step, "teacher"), (gain, "model")))
        assert differences(teacher, student) == []
    student = weights(states[2], "model")  # which had moved on, in every tensor
    assert set(differences(weights(states[2], "teacher"), student)) == set(student) != set()


def weights(state: dict[str, Any], part: str) -> dict[str, Any]:
    """Tensors of the student (model) or the teacher by the name that both have."""
    prefix = f"/tensors/{part}."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "teacher"])
def test_a_mix_is_another_target(name: str, runs: Path) -> None:
    """From the first update on, whose rollouts are the same."""
    mixed, plain = (metrics(runs / arm / "unbroken")[0] for arm in (name, "teacher"))
    assert mixed["rollout/length"] == plain["rollout/length"]
    assert abs(mixed["distill/kl"] - plain["distill/kl"]) > 1e-6
