"""Kills at random moments, restarts, and the comparison with a run that nobody disturbed."""

import random
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_atesd.checkpoint.run_checkpoints import fault_of, step_folders
from megatron_atesd.errors import AtesdError
from megatron_atesd.faults.state import checkpoint_state, differences, metrics, reproducible
from megatron_atesd.faults.torchrun import TRAIN, ranks, torchrun

Say = Callable[[str], None]
Job = subprocess.Popen[bytes]
POLL_SECONDS = 0.002
SAVE_SECONDS = 0.5  # a kill amid a save comes so long after its begin, at most


class ChaosError(AtesdError):
    """A job that nobody had killed ended badly: there is nothing to compare."""


@dataclass
class Report:
    """Figures over all runs. lost: checkpoints once finished, later gone or invalid; different: what ended otherwise than unbroken."""

    runs: int = 0
    kills: int = 0
    kills_in_save: int = 0
    kills_of_one_rank: int = 0
    lost: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class KillPlan:
    """arguments: of tools/train.py, without run.dir. kills: in all; kills_in_save: at least so many of them amid a save."""

    arguments: Sequence[str]
    folder: Path
    processes: int = 2
    kills: int = 30
    kills_in_save: int = 10
    kills_a_run: int = 6
    seed: int = 1


class Chaos:
    """One experiment after a plan; `say` gets a line for every kill and every finished run."""

    def __init__(self, plan: KillPlan, say: Say) -> None:
        self.plan, self.say = plan, say
        self.draw, self.report = random.Random(plan.seed), Report()
        self.seconds = 0.0  # that the unbroken run took

    def execute(self) -> dict[str, Any]:
        """All runs; the report with the unbroken run's length. Raises ChaosError when a job ends badly without having been killed."""
        unbroken, started = self.plan.folder / "unbroken", time.monotonic()
        self._finish(unbroken)
        self.seconds = time.monotonic() - started
        self.say(f"unbroken: {len(metrics(unbroken))} updates in {self.seconds:.0f} s")
        while not self._enough():
            self.report.runs += 1
            run_dir = self.plan.folder / f"run_{self.report.runs}"
            self._broken_run(run_dir)
            found = run_differences(run_dir, unbroken)
            self.report.different += [f"{run_dir.name}: {name}" for name in found]
            self.say(
                f"{run_dir.name}: finished, {'DIFFERENT: ' + ', '.join(found[:3]) if found else 'equal to the unbroken run, bit for bit'}"
            )
        return {"unbroken_seconds": self.seconds, "updates": len(metrics(unbroken)), **vars(self.report)}

    def _enough(self) -> bool:
        return self.report.kills >= self.plan.kills and self.report.kills_in_save >= self.plan.kills_in_save

    def _broken_run(self, run_dir: Path) -> None:
        """Kill and restart, then let it finish; every finished checkpoint must stay valid."""
        finished: set[str] = set()
        for _ in range(self.plan.kills_a_run):
            ended = self._enough() or not self._run_and_kill(run_dir)
            finished |= self.check_kept(run_dir, finished)
            if ended:
                break
        self._finish(run_dir)
        self.check_kept(run_dir, finished)

    def _run_and_kill(self, run_dir: Path) -> bool:
        """Start the job and kill it at some moment; False when it ended before that."""
        in_save = self.report.kills_in_save < self.plan.kills_in_save and self.draw.random() < 0.5
        one_rank, started = self.draw.random() < 0.5, time.time()
        with torchrun(self.plan.processes, self._command(run_dir), self._output(run_dir)) as job:
            if not (self._wait_for_save(job, run_dir, started) if in_save else self._wait(job, self.draw.uniform(0, self.seconds))):
                self._check_end(job, run_dir)
                return False
            victims = ranks(job) if one_rank else []
            amid = bool(saving(run_dir, started))
            if victims:
                self.draw.choice(victims).kill()
                job.wait()  # torchrun ends the others
        self.report.kills += 1
        self.report.kills_in_save += amid
        self.report.kills_of_one_rank += bool(victims)
        what = "one rank" if victims else "all ranks"
        self.say(f"{run_dir.name}: kill {self.report.kills}, {what}{', amid a save' if amid else ''}, {len(metrics(run_dir))} updates done")
        return True

    def _wait(self, job: Job, seconds: float) -> bool:
        """Whether the job still runs after so many seconds."""
        deadline = time.monotonic() + seconds
        while job.poll() is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return job.poll() is None

    def _wait_for_save(self, job: Job, run_dir: Path, started: float) -> bool:
        """Return at some moment of one of the next saves; False when the job ends before."""
        saves_to_pass: int = self.draw.randrange(3)
        seen: set[str] = set()
        while job.poll() is None:
            new = saving(run_dir, started) - seen
            seen |= new
            if new and len(seen) > saves_to_pass and self._wait(job, self.draw.uniform(0, SAVE_SECONDS)) and saving(run_dir, started):
                return True
            time.sleep(POLL_SECONDS)
        return False

    def _finish(self, run_dir: Path) -> None:
        with torchrun(self.plan.processes, self._command(run_dir), self._output(run_dir)) as job:
            job.wait()
            self._check_end(job, run_dir)

    def _check_end(self, job: Job, run_dir: Path) -> None:
        if job.returncode:
            raise ChaosError(
                f"{run_dir}: the job ended with exit code {job.returncode} though nobody killed it; see {self._output(run_dir)}"
            )

    def check_kept(self, run_dir: Path, before: set[str]) -> set[str]:
        """Names of the finished checkpoints; notes those of `before` that are not among them, and any that is invalid."""
        now = {path.name: path for path in step_folders(run_dir / "checkpoints")}
        bad = {name: problem for name, path in now.items() if (problem := fault_of(path))}
        self.report.lost += [f"{run_dir.name}/{name}: {problem}" for name, problem in bad.items()]
        self.report.lost += [f"{run_dir.name}/{name}: gone" for name in sorted(before - now.keys())]
        return now.keys() - bad.keys()

    def _command(self, run_dir: Path) -> list[str]:
        return [str(TRAIN), *self.plan.arguments, f"--run.dir={run_dir}", "--checkpoint.keep=0", "--checkpoint.resume=auto"]

    def _output(self, run_dir: Path) -> Path:
        return run_dir.with_suffix(".log")


def saving(run_dir: Path, since: float) -> set[str]:
    """Names of checkpoints that are being written, begun after `since` (seconds since the epoch); older ones are what a kill left."""
    found = set()
    with suppress(FileNotFoundError):  # a job at its start tries whether it can make the folder, and removes it again
        for path in (run_dir / "checkpoints").glob("*.partial"):
            with suppress(FileNotFoundError):  # finished between both looks
                if path.is_dir() and path.stat().st_mtime >= since:
                    found.add(path.name)
    return found


def run_differences(run_dir: Path, unbroken: Path) -> list[str]:
    """What of the last checkpoint (weights, teacher, optimizer, controller, random states, …) and of metrics.jsonl is not equal."""
    last = f"step_{len(metrics(unbroken))}"
    found = differences(*(checkpoint_state(path / "checkpoints" / last) for path in (run_dir, unbroken)))
    lines = [[reproducible(line) for line in metrics(path)] for path in (run_dir, unbroken)]
    return found + (["metrics.jsonl"] if lines[0] != lines[1] else [])
