"""A run that is killed, whole or a rank at a time, and started again by the same command, equals the run that nothing happened to."""

import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist
from megatron.core import parallel_state
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_atesd.config import load_config
from megatron_atesd.config.health import ALARMS
from megatron_atesd.errors import CheckpointError
from megatron_atesd.faults.state import checkpoint_state, differences, metrics, reproducible
from megatron_atesd.faults.torchrun import family, kill, ranks, torchrun
from megatron_atesd.parallel.agreement import agreed
from megatron_atesd.records import Problem, Rollout
from megatron_atesd.report.samples import read_samples
from megatron_atesd.train.loop import train
from megatron_atesd.train.training_run import TrainingRun
from tests.support.launch import run_distributed
from tests.support.patience import PATIENCE
from tests.support.small_run import (
    PROBLEMS,
    TRAIN,
    arguments,
    finish,
    newest,
    save_inputs,
    wait_for,
)

pytestmark = pytest.mark.slow

UPDATES = 6
# The run and its number of updates from which each goes on.
OTHER_LAYOUTS = {
    "data": ("unbroken", 4, ["--parallel.tensor=1"]),
    "interleaved pipeline": ("unbroken", 4, ["--parallel.tensor=1", "--parallel.pipeline=2", "--parallel.virtual_pipeline=2"]),
    "context": ("unbroken", 2, ["--parallel.tensor=1", "--parallel.context=2", "--parallel.packed=true"]),
    "after context": ("context", 4, ["--parallel.tensor=1"]),
}
# The names that every run with a learned exposure has; perf/mfu needs a known device, eval/* an evaluation.
METRICS = {
    *("distill/loss", "distill/kl", "distill/top1_disagreement", "distill/clipped_tokens", "distill/clipped_kl"),
    *("exposure/alpha", "exposure/a", "exposure/b", "exposure/mean", "exposure/entropy"),
    *("exposure/revealed", "exposure/segments"),
    "controller/alpha",
    *("distill/kl_at/1", "distill/kl_at/2", "distill/kl_at/4", "distill/kl_at/8", "distill/kl_at/16"),
    *("rollout/length_p10", "rollout/length_p50", "rollout/length_p90"),
    *("controller/reward", "controller/learning_progress", "controller/grounding", "controller/advantage", "controller/updates"),
    *("probe/nll", "probe/progress", "student/confidence", "student/entropy", "distill/teacher_entropy", "perf/padding"),
    *("rollout/logprob_gap", "rollout/logprob_gap_max", "rollout/response_ratio"),
    *("rollout/length", "rollout/truncated", "rollout/loops", "rollout/empty", "rollout/accuracy"),
    *("rollout/leakage", "rollout/exploration"),
    *(f"health/{alarm}" for alarm in ALARMS),
    *("optim/lr", "optim/grad_norm", "optim/skipped"),
    *("time/rollout", "time/check", "time/exposure", "time/teacher", "time/student", "time/probe", "time/step", "time/between"),
    *("perf/tokens_per_second", "memory/peak_gib"),
}


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing happened to at TP=2, others from its middle on at other layouts; what each said, and a refusal."""

    run_dir: Path
    said: str
    others: dict[str, tuple[Path, str]]
    seen: dict[str, dict[int, list[str]]]  # ids of the problems that each run rolled out in each update, over all its ranks
    preempted: tuple[Path, str, str]  # directory of a run with background saves; said before and after its second start
    refusal: str


@dataclass(frozen=True)
class Killed:
    """A run killed whole at step_2, then one of its ranks killed at step_4, then finished; each time the same command."""

    run_dir: Path
    lines_at_first_kill: int
    exit_code: int  # of the job that lost a rank
    left_over: list[psutil.Process]
    said: str  # by the job that finished


def train_and_say(inputs: Path, run_dir: Path, *overrides: str) -> str:
    said = StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        train(load_config(arguments(inputs, run_dir, "--distill.clip_mode=entry", *overrides)))
    return said.getvalue()


def undisturbed_runs(inputs: Path, folder: Path) -> Undisturbed:
    """On two ranks. One start of two processes serves all runs."""
    dist.init_process_group("gloo")
    run_dir, others, seen = folder / "unbroken", {}, {}
    with watched_rollouts() as seen["unbroken"]:
        said = train_and_say(inputs, run_dir)
    for name, (source, step, layout) in OTHER_LAYOUTS.items():
        other_dir = folder / name
        if dist.get_rank() == 0:
            shutil.copytree(folder / source, other_dir)
        dist.barrier()
        with watched_rollouts() as seen[name]:
            others[name] = other_dir, train_and_say(inputs, other_dir, f"--checkpoint.resume=step_{step}", *layout)
    with pytest.raises(CheckpointError) as refusal:
        train_and_say(inputs, run_dir, "--checkpoint.resume=never")
    return Undisturbed(run_dir, said, others, seen, preempted_run(inputs, folder / "preempted"), str(refusal.value))


@contextmanager
def watched_rollouts() -> Iterator[dict[int, list[str]]]:
    """Ids of the problems by update, from every rank, each data-parallel share once; filled on leaving."""
    rollout, mine, everything = TrainingRun.rollout, dict[int, list[str]](), dict[int, list[str]]()

    def watched(run: TrainingRun, problems: Sequence[Problem], first: int) -> list[Rollout]:
        if first >= 0 and is_first_of_replica():
            mine[first // run.config.data.batch] = [problem.id for problem in problems]
        return rollout(run, problems, first)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingRun, "rollout", watched)
        yield everything
    for of_rank in agreed(lambda: mine, "rollouts"):
        for update, ids in of_rank.items():
            everything.setdefault(update, []).extend(ids)


def is_first_of_replica() -> bool:
    model = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_pipeline_model_parallel_rank()
    return (*model, parallel_state.get_context_parallel_rank()) == (0, 0, 0)


def preempted_run(inputs: Path, run_dir: Path) -> tuple[Path, str, str]:
    """Rank 1 alone gets SIGUSR1 amid update 3; then the same command again."""
    rollout, arguments = TrainingRun.rollout, (inputs, run_dir, "--checkpoint.background=true")

    def signalled(run: TrainingRun, problems: Sequence[Problem], first: int) -> list[Rollout]:
        if first // run.config.data.batch == 2 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return rollout(run, problems, first)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingRun, "rollout", signalled)
        first = train_and_say(*arguments)
    return run_dir, first, train_and_say(*arguments)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def undisturbed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return run_distributed(undisturbed_runs, 2, inputs, tmp_path_factory.mktemp("undisturbed"))[0]


@pytest.fixture(scope="module")
def killed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    folder = tmp_path_factory.mktemp("killed")
    run_dir, output = folder / "run", folder / "output"
    command = [TRAIN, *arguments(inputs, run_dir, "--distill.clip_mode=entry")]
    with torchrun(2, command, output) as job:
        wait_for(lambda: newest(run_dir) == "step_2", job, output)
        kill(job)
    lines = len(metrics(run_dir))
    with torchrun(2, command, output) as job:
        wait_for(lambda: newest(run_dir) == "step_4" and "resumed from" in output.read_text(), job, output)
        everyone = family(job)
        ranks(job)[1].kill()
        exit_code = job.wait(PATIENCE)
        _, left_over = psutil.wait_procs(everyone, PATIENCE)
    with torchrun(2, command, output) as job:
        finish(job, output)
    return Killed(run_dir, lines, exit_code, left_over, output.read_text())


def tensorboard_scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_the_first_kill_came_in_the_middle(killed: Killed) -> None:
    assert 2 <= killed.lines_at_first_kill < UPDATES


def test_a_lost_rank_ends_the_job_and_leaves_no_process(killed: Killed) -> None:
    assert killed.exit_code != 0
    assert killed.left_over == []


def test_the_same_command_goes_on_from_the_newest_checkpoint(killed: Killed) -> None:
    assert f"resumed from {killed.run_dir / 'checkpoints' / 'step_4'} after 4 updates" in killed.said


def test_metrics_and_exposures_of_a_killed_run_equal_the_unbroken_runs(killed: Killed, undisturbed: Undisturbed) -> None:
    lines, expected = metrics(killed.run_dir), metrics(undisturbed.run_dir)
    assert [line["update"] for line in expected] == list(range(1, UPDATES + 1))
    assert [reproducible(line) for line in lines] == [reproducible(line) for line in expected]


def test_each_update_had_an_exposure_of_its_own(undisturbed: Undisturbed) -> None:
    """Otherwise equal exposures would say little about the controller's state."""
    assert len({line["exposure/alpha"] for line in metrics(undisturbed.run_dir)}) == UPDATES


def test_final_state_of_a_killed_run_equals_the_unbroken_runs_bit_for_bit(killed: Killed, undisturbed: Undisturbed) -> None:
    """Weights, teacher, optimizer, controller, schedule and random states."""
    assert_same_final_state(killed.run_dir, undisturbed.run_dir)


def assert_same_final_state(run_dir: Path, other_dir: Path, settings: frozenset[str] = frozenset()) -> None:
    """settings: names of settings that may differ."""
    states = [checkpoint_state(folder / "checkpoints" / "step_6") for folder in (run_dir, other_dir)]
    assert states[0].keys() == states[1].keys()
    assert set(differences(*states)) == {f"/plain/run/config/{name}" for name in settings}


def test_a_preempted_run_says_what_it_saved(undisturbed: Undisturbed) -> None:
    run_dir, first, second = undisturbed.preempted
    assert "stopped by SIGUSR1 after update 3: step_3 is saved" in first
    assert f"resumed from {run_dir / 'checkpoints' / 'step_3'} after 3 updates" in second


def test_a_preempted_run_that_saves_in_the_background_ends_as_the_unbroken_one(undisturbed: Undisturbed) -> None:
    assert_same_final_state(undisturbed.preempted[0], undisturbed.run_dir, frozenset({"checkpoint/background"}))


@pytest.mark.parametrize("layout", OTHER_LAYOUTS)
def test_over_a_change_of_layout_every_problem_is_seen_once_an_epoch(undisturbed: Undisturbed, layout: str) -> None:
    """An epoch is three updates; the change comes amid one."""
    ids = undisturbed.seen["unbroken"] | undisturbed.seen[layout]
    assert sorted(undisturbed.seen[layout]) == list(range(OTHER_LAYOUTS[layout][1], UPDATES))
    epochs = [sorted(ids[update] + ids[update + 1] + ids[update + 2]) for update in (0, 3)]
    assert epochs[0] == epochs[1]
    assert len(set(epochs[0])) == len(epochs[0]) == PROBLEMS


def test_training_changed_the_weights_between_checkpoints(undisturbed: Undisturbed) -> None:
    """Otherwise equal weights would say little about the optimizer's state."""
    states = [checkpoint_state(undisturbed.run_dir / "checkpoints" / f"step_{step}") for step in (4, 6)]
    weights = [name for name in states[0] if name.startswith(("/tensors/model.", "/tensors/teacher.")) and name.endswith("weight")]
    assert set(weights) <= set(differences(*states))


def test_tensorboard_of_a_killed_run_reads_as_of_an_unbroken_one(killed: Killed) -> None:
    scalars = tensorboard_scalars(killed.run_dir)
    for line in metrics(killed.run_dir):
        for name in line.keys() - {"update"}:
            assert dict(scalars[name])[line["update"]] == pytest.approx(line[name], rel=1e-6), name
    assert [step for step, _ in scalars["distill/loss"]] == list(range(1, UPDATES + 1))


def test_metrics_jsonl_has_every_metric(undisturbed: Undisturbed) -> None:
    assert {name for line in metrics(undisturbed.run_dir) for name in line} == METRICS | {"update"}


def test_the_start_warns_once_of_the_clip_by_entry(undisturbed: Undisturbed) -> None:
    assert undisturbed.said.count("warning: distill.clip_mode entry") == 1


def test_tensorboard_has_every_metric(undisturbed: Undisturbed) -> None:
    assert set(tensorboard_scalars(undisturbed.run_dir)) == METRICS


@pytest.mark.parametrize("layout", OTHER_LAYOUTS)
def test_a_checkpoint_goes_on_at_another_layout_with_the_same_rollouts(undisturbed: Undisturbed, layout: str) -> None:
    """The first rollout of each update, problem and response."""
    (other_dir, other_said), done = undisturbed.others[layout], OTHER_LAYOUTS[layout][1]
    assert f"after {done} updates" in other_said
    assert len(samples(other_dir, done)) == UPDATES - done
    assert samples(other_dir, done) == samples(undisturbed.run_dir, done)
    names = ("rollout/length", "rollout/truncated", "rollout/accuracy", "exposure/alpha")
    new, old = metrics(other_dir)[done], metrics(undisturbed.run_dir)[done]
    assert [new[name] for name in names] == pytest.approx([old[name] for name in names], rel=1e-6)


def samples(run_dir: Path, done: int) -> list[tuple[str, tuple[str, ...]]]:
    """Problem and response of the sample of each update after `done`."""
    return [(sample.id, sample.tokens) for sample in read_samples(run_dir, UPDATES) if sample.update > done]


@pytest.mark.parametrize("layout", OTHER_LAYOUTS)
def test_a_checkpoint_goes_on_at_another_layout_with_the_same_losses(undisturbed: Undisturbed, layout: str) -> None:
    (other_dir, _), done = undisturbed.others[layout], OTHER_LAYOUTS[layout][1]
    names = ("distill/loss", "distill/kl", "student/confidence", "optim/grad_norm", "probe/nll")
    for new, old in zip(metrics(other_dir)[done:], metrics(undisturbed.run_dir)[done:], strict=True):
        assert [new[name] for name in names] == pytest.approx([old[name] for name in names], rel=1e-4)


def test_resume_never_refuses_a_directory_with_a_checkpoint(undisturbed: Undisturbed) -> None:
    assert undisturbed.refusal == (f"{undisturbed.run_dir} already holds step_6; set checkpoint.resume to auto or choose another run.dir")
