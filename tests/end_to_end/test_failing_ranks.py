"""Real jobs of torchrun in which rank 1 raises, hangs, or is killed: each ends by itself and says why, or goes on after a restart."""

from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from megatron_atesd.faults.state import metrics
from megatron_atesd.faults.torchrun import family, ranks, torchrun
from tests.support.patience import PATIENCE
from tests.support.small_run import arguments, newest, save_inputs, wait_for

pytestmark = pytest.mark.slow

FAULTY_TRAIN = str(Path(__file__).parents[1] / "support" / "faulty_train.py")
UPDATES = 4


@dataclass(frozen=True)
class Ended:
    """A job that has ended: exit code, output, which of its processes still run."""

    run_dir: Path
    exit_code: int
    said: str
    left_over: list[psutil.Process]


def run_with_fault(inputs: Path, folder: Path, fault: str, *options: str, overrides: tuple[str, ...] = ()) -> Ended:
    """Two data-parallel ranks under torchrun with these `options`."""
    run_dir, output = folder / "run", folder / "output"
    small = ("--parallel.tensor=1", f"--run.updates={UPDATES}", "--rollout.max_new_tokens=4", "--monitor.tensorboard=false")
    settings = arguments(inputs, run_dir, *small, "--monitor.samples=0", *overrides)
    with torchrun(2, [*options, FAULTY_TRAIN, fault, *settings], output) as job:
        wait_for(lambda: len(ranks(job)) == 2, job, output)
        everyone = family(job)
        exit_code = job.wait(PATIENCE)
        _, left_over = psutil.wait_procs(everyone, PATIENCE)
    return Ended(run_dir, exit_code, output.read_text(), left_over)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def raised(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    return run_with_fault(inputs, tmp_path_factory.mktemp("raised"), "raise", overrides=("--checkpoint.every=0",))


@pytest.fixture(scope="module")
def hung(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Collectives wait for 15 seconds, once the start is over; the rank that hangs is not waited for when torchrun ends the job."""
    overrides = ("--parallel.timeout_minutes=0.25", "--checkpoint.every=0")
    return run_with_fault(inputs, tmp_path_factory.mktemp("hung"), "hang", "--shutdown-timeout=5", overrides=overrides)


@pytest.fixture(scope="module")
def restarted(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    return run_with_fault(inputs, tmp_path_factory.mktemp("killed"), "kill", "--max-restarts=1")


def root_cause(said: str) -> str:
    """The part of torchrun's report that says who failed first."""
    return said.partition("Root Cause")[2]


def test_a_rank_that_raises_ends_the_job(raised: Ended) -> None:
    assert raised.exit_code != 0
    assert raised.left_over == []


def test_the_root_cause_in_torchruns_report_is_the_traceback_of_the_rank_that_raised(raised: Ended) -> None:
    cause = root_cause(raised.said)
    assert "rank      : 1 " in cause
    assert "in faulty_rollout" in cause
    assert "ValueError: rank one has a bad day" in cause


def test_the_first_traceback_is_that_of_the_rank_that_raised(raised: Ended) -> None:
    first = raised.said.partition("Traceback (most recent call last)")[2]
    assert first.index("ValueError: rank one has a bad day") < first.index("Traceback (most recent call last)")


def test_a_rank_that_hangs_ends_the_job(hung: Ended) -> None:
    assert hung.exit_code != 0
    assert hung.left_over == []


def test_a_rank_that_hangs_shows_where(hung: Ended) -> None:
    stack = hung.said.partition("rank 1 has been in the rollout of update 3 for")[2].partition("\n\n")[0]
    assert "time.sleep(3600)" in stack


def test_the_root_cause_in_torchruns_report_names_the_rank_that_hangs(hung: Ended) -> None:
    assert "LostRankError: rank 0 lost another rank: rank 1 has been in the rollout of update 3" in root_cause(hung.said)


def test_after_a_rank_was_killed_torchrun_restarts_the_job_which_finishes(restarted: Ended) -> None:
    assert restarted.exit_code == 0, restarted.said
    assert newest(restarted.run_dir) == f"step_{UPDATES}"


def test_the_restarted_job_goes_on_from_the_newest_checkpoint(restarted: Ended) -> None:
    assert f"resumed from {restarted.run_dir / 'checkpoints' / 'step_2'} after 2 updates" in restarted.said
    assert [line["update"] for line in metrics(restarted.run_dir)] == list(range(1, UPDATES + 1))
