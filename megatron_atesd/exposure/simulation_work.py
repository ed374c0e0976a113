"""Many cells of simulated runs at work side by side, in processes of their own, and how far they are."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context

import torch

from megatron_atesd.config import ExposureConfig
from megatron_atesd.exposure.simulated_student import StudentModel
from megatron_atesd.exposure.simulation_figures import Figures, run_figures, summary

SLOW = {"learned": 15, "posterior": 35}  # time of an update, in that of an update of the other modes: for the order and the time left
LINE_SECONDS = 30.0  # between two words on progress where stderr is no terminal
PIECE = 10  # runs that a process does at a time
Key = tuple[str, str, int]  # mode, student, decisions


@dataclass(frozen=True)
class Part:
    """One cell of a table: `seeds` runs of one mode with one kind of student."""

    mode: str
    student: str
    decisions: int
    config: ExposureConfig
    students: tuple[StudentModel, ...]
    updates: int
    seeds: int

    @property
    def key(self) -> Key:
        """What tells this cell from the others."""
        return self.mode, self.student, self.decisions


def work(todo: Sequence[Part], jobs: int, tell: Callable[[float], None]) -> dict[Key, Figures]:
    """The figures (`summary`) of every part by its key, which do not depend on `jobs`, the number of processes.

    tell: hears again and again which share of the work is done.
    """
    pieces = [(part, range(seed, min(seed + PIECE, part.seeds))) for part in todo for seed in range(0, part.seeds, PIECE)]
    pieces.sort(key=lambda piece: -_work(*piece))  # the longest first, so that processes end together
    done, whole = 0.0, sum(_work(*piece) for piece in pieces)
    runs: dict[Key, dict[int, list[dict[str, float]]]] = {part.key: {} for part in todo}
    for number, figures in _all(pieces, jobs):
        part, seeds = pieces[number]
        runs[part.key][seeds.start] = figures
        done += _work(part, seeds)
        tell(done / whole)
    return {part.key: summary([run for seed in sorted(runs[part.key]) for run in runs[part.key][seed]], part.students) for part in todo}


def progress() -> Callable[[float], None]:
    """For `work`: says on stderr, once in a while, how far it is and how long the rest should take."""
    start = said = time.monotonic()
    terminal = sys.stderr.isatty()

    def tell(share: float) -> None:
        nonlocal said
        now = time.monotonic()
        if share < 1 and now - said < (1.0 if terminal else LINE_SECONDS):
            return
        said, left = now, (now - start) * (1 - share) / share
        text = f"{share:.0%} of the work in {now - start:.0f} s, about {left:.0f} s left"
        print(f"\r{text:<60}" if terminal else text, end="\n" if share == 1 or not terminal else "", file=sys.stderr, flush=True)

    return tell


def _all(pieces: Sequence[tuple[Part, range]], jobs: int) -> Iterator[tuple[int, list[dict[str, float]]]]:
    """The number of each piece and its runs' figures, as they come."""
    if jobs == 1:
        yield from ((number, _runs(*piece)) for number, piece in enumerate(pieces))
        return
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("fork"), initializer=torch.set_num_threads, initargs=(1,))
    try:
        futures = {pool.submit(_runs, *piece): number for number, piece in enumerate(pieces)}
        yield from ((futures[future], future.result()) for future in as_completed(futures))
    finally:
        pool.shutdown(cancel_futures=True)


def _runs(part: Part, seeds: range) -> list[dict[str, float]]:
    return run_figures(part.config, part.students, part.updates, seeds)


def _work(part: Part, seeds: range) -> int:
    """About in proportion to the time it takes."""
    return part.updates * len(seeds) * part.config.bins * SLOW.get(part.config.mode, 1)
