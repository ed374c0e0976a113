"""With every measured signal, two data ranks agree, a resumed run equals the unbroken one, and what was gathered at the start stays."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
import torch.distributed as dist

from megatron_atesd.config import load_config
from megatron_atesd.faults.state import checkpoint_state, differences, metrics, reproducible
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.records import Exposure, Problem, Rollout
from megatron_atesd.train import training_run
from megatron_atesd.train.checks import check_before_work
from megatron_atesd.train.loop import train
from megatron_atesd.train.progress import Finished
from megatron_atesd.train.training_run import TrainingRun
from tests.support.launch import run_distributed
from tests.support.small_run import arguments, save_inputs

pytestmark = pytest.mark.slow

UPDATES = 4
SETTINGS = {
    "probe_own": ["--exposure.grounding=own"],
    "probe_margin": ["--exposure.mode=fixed", "--exposure.probe_every=3"],
    "probe_accuracy": ["--exposure.grounding=off"],
    "probe_kl": ["--exposure.mode=posterior"],
    "train_kl": ["--exposure.grounding=answer"],
    "train_accuracy": ["--exposure.mode=aligned", "--exposure.hold=3", "--exposure.grid=3"],  # the second window begins after the resume
}


@dataclass(frozen=True)
class Runs:
    """A run of four updates, and a copy that went on from its second; what the first said, and the places its copy rolled out at."""

    unbroken: Path
    resumed: Path
    said: str
    places: list[int]


@contextmanager
def graded_by_parity() -> Iterator[None]:
    """A random model solves nothing: call right what begins with an even token."""

    def graded(rollouts: Sequence[Rollout], renderer: object) -> list[bool]:
        return [rollout.response_ids[0] % 2 == 0 for rollout in rollouts]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "graded", graded)
        yield


def settings(inputs: Path, run_dir: Path, progress: str) -> list[str]:
    small = ("--run.updates=4", "--rollout.max_new_tokens=48", "--exposure.probe_samples=3", "--parallel.tensor=1")
    return arguments(inputs, run_dir, *small, f"--exposure.progress={progress}", *SETTINGS[progress])


def all_runs(inputs: Path, folder: Path) -> dict[str, Runs]:
    dist.init_process_group("gloo")
    with graded_by_parity():
        return {progress: both_runs(inputs, folder / progress, progress) for progress in SETTINGS}


def both_runs(inputs: Path, folder: Path, progress: str) -> Runs:
    unbroken, resumed, said, places = folder / "unbroken", folder / "resumed", StringIO(), list[int]()
    with redirect_stdout(said):
        train(load_config(settings(inputs, unbroken, progress)))
    if dist.get_rank() == 0:
        shutil.copytree(unbroken, resumed)
    dist.barrier()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingRun, "rollout", watched(TrainingRun.rollout, places))
        train(load_config([*settings(inputs, resumed, progress), "--checkpoint.resume=step_2"]))
    return Runs(unbroken, resumed, said.getvalue(), places)


def watched(rollout: Callable[..., list[Rollout]], places: list[int]) -> Callable[..., list[Rollout]]:
    def watching(run: TrainingRun, problems: Sequence[Problem], first: int) -> list[Rollout]:
        places.append(first)
        return rollout(run, problems, first)

    return watching


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def runs(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Runs]:
    return run_distributed(all_runs, 2, inputs, tmp_path_factory.mktemp("runs"))[0]


@pytest.mark.parametrize("progress", SETTINGS)
def test_a_resumed_run_equals_the_unbroken_one(progress: str, runs: dict[str, Runs]) -> None:
    folders = runs[progress].unbroken, runs[progress].resumed
    lines = [[reproducible(line) for line in metrics(folder)] for folder in folders]
    assert lines[0] == lines[1]
    assert set(differences(*(checkpoint_state(folder / "checkpoints" / "step_4") for folder in folders))) == {
        "/plain/run/config/checkpoint/resume"
    }


@pytest.mark.parametrize("progress", SETTINGS)
def test_a_resumed_run_gathers_nothing_again(progress: str, runs: dict[str, Runs]) -> None:
    """Fresh responses alone are drawn: of eight problems after updates 3 and 4, beyond the places of three samples and of update 0."""
    fresh = {-8 * (3 + 1 + update) + share for update in (3, 4) for share in (0, 4)} if progress == "probe_accuracy" else set()
    assert {place for place in runs[progress].places if place < 0} <= fresh


def test_exposures_are_compared_at_the_start_of_each_window(runs: dict[str, Runs]) -> None:
    scores = [[line[f"controller/score/{alpha}"] for alpha in ("0", "0.5", "1")] for line in metrics(runs["train_accuracy"].unbroken)]
    assert len({tuple(line) for line in scores}) == 2  # windows of three updates in four
    assert all(len(set(line)) == 3 for line in scores)


@pytest.mark.parametrize("progress", ["probe_own", "probe_margin"])
def test_the_start_says_how_many_probe_problems_count(progress: str, runs: dict[str, Runs]) -> None:
    assert "of 8 probe problems have a correct response among 3 of the start model" in runs[progress].said


@pytest.mark.parametrize(
    ("progress", "measured"), [("probe_own", [1, 2, 3, 4]), ("probe_margin", [3, 4]), ("probe_accuracy", [1, 2, 3, 4])]
)
def test_the_probe_is_measured_as_often_as_said_and_at_the_end(progress: str, measured: list[int], runs: dict[str, Runs]) -> None:
    lines = metrics(runs[progress].unbroken)
    for name in ("probe/progress", "probe/nll"):
        assert [line["update"] for line in lines if name in line] == measured


def measure(inputs: Path, layouts: list[list[str]]) -> list[tuple[list[tuple[tuple[int, ...], bool]], dict[str, float], list[float]]]:
    """At each layout: the own responses and whether they are right, and the start's metrics of margin and of fresh responses."""
    results = []
    for layout in layouts:
        tensor, pipeline = (int(value.partition("=")[2]) for value in layout)
        with parallel_session(tensor, pipeline), graded_by_parity():
            found = dict[str, float]()
            for progress in ("probe_accuracy", "probe_margin"):
                config = load_config([*settings(inputs, inputs / "run", progress), *layout])
                run = TrainingRun(config, check_before_work(config, dist.get_world_size()))
                run.gather()
                found |= run.probe(Finished(0), Exposure(1.0, -1))[1]
            own = [(rollout.response_ids, right) for rollout, right in zip(run.own.rollouts, run.own.right, strict=True)]
            results.append((own, found, [run._grounding(0.5)]))
    return results


def test_signals_do_not_depend_on_the_layout(inputs: Path) -> None:
    layouts = [[f"--parallel.tensor={tensor}", f"--parallel.pipeline={pipeline}"] for tensor, pipeline in ((1, 1), (2, 1), (1, 2))]
    ((own, found, grounding),) = run_distributed(measure, 1, inputs, layouts[:1])[0]
    assert {right for _, right in own} == {True, False}
    for rank in run_distributed(measure, 2, inputs, layouts):
        for other in rank:
            assert other[0] == own
            assert other[1] == pytest.approx(found, rel=1e-5)
            assert other[2] == pytest.approx(grounding, rel=1e-5)
