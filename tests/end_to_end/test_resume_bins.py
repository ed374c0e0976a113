"""With difficulty bins a resumed run equals the unbroken one, at both layouts of two ranks, and measures no difficulty again."""

import shutil
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
import torch.distributed as dist

from megatron_atesd.config import load_config
from megatron_atesd.distill.likelihood import text_nlls
from megatron_atesd.faults.state import checkpoint_state, differences, metrics, reproducible
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.records import Rollout
from megatron_atesd.train import training_run
from megatron_atesd.train.checks import check_before_work
from megatron_atesd.train.loop import train
from megatron_atesd.train.training_run import TrainingRun
from tests.support.launch import run_distributed
from tests.support.small_run import arguments, save_inputs

pytestmark = pytest.mark.slow

DATA, TENSOR = "--parallel.tensor=1", "--parallel.tensor=2"  # what the two ranks divide
SETTINGS = {
    "learned, nll": [DATA, "--exposure.mode=learned", "--exposure.difficulty=nll"],
    "aligned, pass rate": [
        *(TENSOR, "--exposure.mode=aligned", "--exposure.progress=train_accuracy", "--exposure.grid=3", "--exposure.hold=3"),
        *("--exposure.difficulty=pass_rate", "--exposure.difficulty_samples=2", "--exposure.probe_samples=3"),
    ],
    "posterior, field": [DATA, "--exposure.mode=posterior", "--exposure.difficulty=field", "--exposure.progress=probe_accuracy"],
    "target_kl, field": [TENSOR, "--exposure.mode=target_kl", "--exposure.difficulty=field", "--exposure.target_kl=0.01"],
}


@dataclass(frozen=True)
class Runs:
    """A run of four updates, and a copy that went on from its second, and what each said."""

    unbroken: Path
    resumed: Path
    said: tuple[str, str]


def graded(rollouts: Sequence[Rollout], renderer: object) -> list[bool]:
    """A random model solves nothing: call right what begins with an even token."""
    return [rollout.response_ids[0] % 2 == 0 for rollout in rollouts]


def all_runs(inputs: Path, folder: Path) -> dict[str, Runs]:
    dist.init_process_group("gloo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "graded", graded)
        return {name: both_runs(inputs, folder / name, overrides) for name, overrides in SETTINGS.items()}


def both_runs(inputs: Path, folder: Path, overrides: Sequence[str]) -> Runs:
    small = ("--run.updates=4", "--rollout.max_new_tokens=48", "--exposure.bins=2", *overrides)
    said = StringIO(), StringIO()
    with redirect_stdout(said[0]):
        train(load_config(arguments(inputs, folder / "unbroken", *small)))
    if dist.get_rank() == 0:
        shutil.copytree(folder / "unbroken", folder / "resumed")
    dist.barrier()
    with redirect_stdout(said[1]):
        train(load_config([*arguments(inputs, folder / "resumed", *small), "--checkpoint.resume=step_2"]))
    return Runs(folder / "unbroken", folder / "resumed", (said[0].getvalue(), said[1].getvalue()))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def runs(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Runs]:
    return run_distributed(all_runs, 2, inputs, tmp_path_factory.mktemp("runs"))[0]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_resumed_run_equals_the_unbroken_one(name: str, runs: dict[str, Runs]) -> None:
    folders = runs[name].unbroken, runs[name].resumed
    lines = [[reproducible(line) for line in metrics(folder)] for folder in folders]
    assert lines[0] == lines[1]
    assert all(f"bin{i}/{metric}" in line for line in lines[0] for i in range(2) for metric in ("exposure/alpha", "distill/kl"))
    decided = [[(n, v) for n, v in sorted(line.items()) if n.startswith(("bin0/exposure/alpha", "bin0/controller/"))] for line in lines[0]]
    assert len(set(map(tuple, decided))) > 1
    assert set(differences(*(checkpoint_state(folder / "checkpoints" / "step_4") for folder in folders))) == {
        "/plain/run/config/checkpoint/resume"
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_a_resumed_run_has_the_bins_and_measures_nothing_again(name: str, runs: dict[str, Runs]) -> None:
    first, again = runs[name].said
    (bins,) = [line for line in first.splitlines() if line.startswith("difficulty bins")]
    assert bins in again.splitlines()
    assert [line for line in again.splitlines() if line.startswith("difficulty:")] == []


def nlls(inputs: Path, layouts: list[list[str]]) -> list[list[float]]:
    found = []
    for layout in layouts:
        tensor, pipeline, context = (int(value.partition("=")[2]) for value in layout)
        with parallel_session(tensor, pipeline, context=context):
            config = load_config([*arguments(inputs, inputs / "run"), *layout])
            run = TrainingRun(config, check_before_work(config, dist.get_world_size()))
            pairs = [(run.renderer.student(p), run.renderer.reference(p)) for p in run.probe_problems]
            found.append(text_nlls(run.model, pairs, 128))
            found.append([run._mean([pair]) * len(pair[1]) for pair in pairs])
    return found


def test_each_texts_nll_is_the_same_at_every_layout_and_as_scored_alone(inputs: Path) -> None:
    names = ("tensor", "pipeline", "context")
    layouts = [[f"--parallel.{n}={s}" for n, s in zip(names, sizes, strict=True)] for sizes in ((1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2))]
    (alone, expected) = run_distributed(nlls, 1, inputs, layouts[:1])[0]
    assert alone == pytest.approx(expected, rel=1e-6)
    for rank in run_distributed(nlls, 2, inputs, layouts):
        for found in rank:
            assert found == pytest.approx(expected, rel=1e-5)
