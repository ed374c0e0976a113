"""The checkpoints of one run directory: which one to go on from, saving the next, deleting the old.

checkpoints/ holds step_N/ folders and `latest`, a file with the name of the newest, for people. A folder counts when its checksums hold.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from types import TracebackType
from typing import Any

from megatron_atesd.checkpoint.folders import REPLACED, clean, recover, remove_folder, sync
from megatron_atesd.checkpoint.reading import check_folder
from megatron_atesd.checkpoint.saving import FolderSave
from megatron_atesd.config import CheckpointConfig
from megatron_atesd.errors import AtesdError, CheckpointError
from megatron_atesd.parallel.agreement import on_rank_0

ASIDE = ".aside"  # ending of what a run left behind by going back to an older checkpoint


def step_folders(checkpoints: Path) -> list[Path]:
    """The folders that are complete checkpoints by their names, newest first; their contents are not looked at."""
    steps = [path for path in checkpoints.glob("step_*") if re.fullmatch(r"step_\d+", path.name) and path.is_dir()]
    return sorted(steps, key=step_number, reverse=True)


def step_number(folder: Path) -> int:
    """N of step_N: its number of finished updates."""
    return int(folder.name.removeprefix("step_"))


def fault_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint, None when every bit is as it was written. Collective when there are process groups."""
    try:
        check_folder(folder)
    except CheckpointError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class Choice:
    """A checkpoint to go on from (None: there is none) and, for a person, why it is this one."""

    folder: Path | None
    why: str


def choose(checkpoints: Path, resume: str = "auto") -> Choice:
    """The newest valid checkpoint for `auto`, else the one named (step_N). Collective when there are process groups.

    Raises CheckpointError when the named one is missing or damaged, or when there are checkpoints but no valid one.
    """
    there = on_rank_0(lambda: step_folders(checkpoints), f"{checkpoints} cannot be read")
    if resume != "auto":
        if (named := checkpoints / resume) not in there:
            names = ", ".join(folder.name for folder in there) or "no checkpoint"
            raise CheckpointError(f"checkpoint.resume is {resume}, but {checkpoints} holds {names}; name one of them, or auto")
        check_folder(named)
        return Choice(named, "as checkpoint.resume asks")
    faults = []
    for folder in there:
        if (fault := fault_of(folder)) is None:
            return Choice(folder, "; ".join([*faults, "the newest valid one"]))
        faults.append(f"{folder.name} is left out: {fault}")
    if faults:
        raise CheckpointError(f"no valid checkpoint in {checkpoints}: {'; '.join(faults)}; restore one, or choose another run.dir")
    return Choice(None, "no checkpoint yet")


def start_from(checkpoints: Path, resume: str) -> Choice:
    """What a job begins with, by checkpoint.resume: auto or step_N; never has been held by `check_fresh`. Collective.

    step_N counts for the job's first start; when torchrun starts it again after a failure, it goes on from where it was by then.
    Raises CheckpointError as `choose`.
    """
    on_rank_0(lambda: recover(checkpoints), f"{checkpoints} cannot be put in order")
    started_again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    return choose(checkpoints, "auto" if started_again or resume == "never" else resume)


def check_fresh(checkpoints: Path) -> None:
    """Raise CheckpointError when there is a checkpoint, also one that a kill left under the name of one to be replaced."""
    if there := [path.name for path in sorted(checkpoints.glob("step_*")) if re.fullmatch(rf"step_\d+({re.escape(REPLACED)})?", path.name)]:
        raise CheckpointError(f"{checkpoints.parent} already holds {there[-1]}; set checkpoint.resume to auto or choose another run.dir")


def set_aside(checkpoints: Path, update: int) -> None:
    """Rename checkpoints newer than step_<update> to step_N.aside: a run that goes on from there leaves their course, but loses none."""
    for newer in step_folders(checkpoints):
        if step_number(newer) > update:
            names = (newer.with_name(f"{newer.name}{ASIDE}{number}") for number in chain([""], (f".{n}" for n in count(2))))
            os.replace(newer, next(name for name in names if not name.exists()))


class Saver:
    """Saves one run's checkpoints. Collective, as every method.

    say: tells the user about a failed save that checkpoint.on_error lets pass.
    """

    def __init__(self, checkpoints: Path, config: CheckpointConfig, say: Callable[[str], None]) -> None:
        self._folder, self._config, self._say = checkpoints, config, say
        self._running: FolderSave | None = None
        self._failed = 0
        self.best: int | None = None  # the number of a checkpoint that is kept whatever checkpoint.keep says

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, AtesdError):  # which ends all ranks alike: the save under way gets its name first
            self.finish(wait=True)

    def save(self, update: int, state: dict[str, Any], hf_files: Path, last: bool) -> None:
        """Write step_<update>; with checkpoint.background, only start to. The `last` save is waited for, and its failure always raises.

        Raises CheckpointError when it fails and checkpoint.on_error is stop; the checkpoints before it are untouched then.
        """
        self.finish(wait=True)
        target = self._folder / f"step_{update}"
        self._allow_failure(lambda: self._start(target, state, hf_files), last)
        self.finish(wait=last or not self._config.background, last=last)

    def finish(self, wait: bool, last: bool = False) -> None:
        """Give the save that runs in the background, if any, its name, once it is written. Raises as `save` does."""
        self._allow_failure(lambda: self._finish(wait), last)

    def metrics(self) -> dict[str, float]:
        """checkpoint/failed: saves that failed since the start; only where checkpoint.on_error lets them pass."""
        return {"checkpoint/failed": float(self._failed)} if self._config.on_error == "continue" else {}

    def _start(self, target: Path, state: dict[str, Any], hf_files: Path) -> None:
        on_rank_0(lambda: self._make_room(step_number(target)), f"{target} cannot be saved")
        self._running = FolderSave(target, state, hf_files)

    def _finish(self, wait: bool) -> None:
        running = self._running
        if running is None:
            return
        self._running = None
        if running.finished(wait):
            on_rank_0(lambda: self._settle(running.final), f"{running.final} is saved, but {self._folder} cannot be put in order")
        else:
            self._running = running

    def _allow_failure(self, step: Callable[[], None], last: bool) -> None:
        try:
            step()
        except CheckpointError as error:
            if last or self._config.on_error == "stop":
                raise CheckpointError(f"{error}; earlier checkpoints are untouched: mend the cause and start again") from error
            self._failed += 1
            self._say(f"warning: {error}; training goes on (checkpoint.on_error): mend it before the last save, which must not fail")

    def _make_room(self, update: int) -> None:
        """Away with what killed jobs left, and with newer checkpoints, which are damaged: the run began before them."""
        self._folder.mkdir(parents=True, exist_ok=True)
        recover(self._folder)
        clean(self._folder)
        set_aside(self._folder, update)

    def _settle(self, newest: Path) -> None:
        temporary = self._folder / "latest.partial"
        temporary.write_text(newest.name + "\n")
        sync(temporary)
        os.replace(temporary, self._folder / "latest")
        sync(self._folder)
        for folder in superfluous(step_folders(self._folder), self._config.keep, self._config.keep_every, self.best):
            remove_folder(folder)


def superfluous(newest_first: list[Path], keep: int, keep_every: int, best: int | None = None) -> list[Path]:
    """All but the `keep` newest (0 = all), those whose number is a multiple of `keep_every` (0 = none), and step_<best>."""
    old = [folder for folder in newest_first[keep:] if step_number(folder) != best] if keep else []
    return [folder for folder in old if not keep_every or step_number(folder) % keep_every]
