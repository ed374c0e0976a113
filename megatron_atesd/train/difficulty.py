"""Which difficulty bin each problem belongs to: decided before the first update, and kept in checkpoints."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_atesd.config import ExposureConfig
from megatron_atesd.errors import DataError
from megatron_atesd.exposure.bins import bin_number, even_edges
from megatron_atesd.records import Problem

Key = tuple[str, str]  # ids are unique within a file, and no question is in two files


@dataclass
class DifficultyBins:
    """Problems by bin, 0 the easiest.

    files: the training and the probe problems. edges: highest difficulty in each bin but the last. number: of each problem that the run
    uses; empty until `sort`.
    """

    files: tuple[Sequence[Problem], Sequence[Problem]]
    edges: list[float] = field(default_factory=list)
    number: dict[Key, int] = field(default_factory=dict)

    def of(self, problem: Problem) -> int:
        """Number of a problem's bin; 0 while nothing is sorted."""
        return self.number[_key(problem)] if self.number else 0

    def sort(self, exposure: ExposureConfig, train: Mapping[Key, float], probe: Mapping[Key, float]) -> None:
        """Sort problems by their difficulties, higher is harder. The edges are the settings' or, from `train`, even ones.

        Raises DataError when there are too few different difficulties, or a bin has no training or no probe problem.
        """
        self.edges = list(exposure.bin_edges) or even_edges(list(train.values()), exposure.bins)
        self.number = {key: bin_number(value, self.edges) for key, value in {**train, **probe}.items()}
        for number in range(exposure.bins):
            for name, keys in (("data.train", train), ("data.probe", probe)):
                if not any(self.number[key] == number for key in keys):
                    raise DataError(
                        f"difficulty bin {number} of {exposure.bins} has no problem of {name} (the bins end at {self.edges}): set "
                        "exposure.bin_edges, lower exposure.bins, or give more problems"
                    )

    def account(self) -> str:
        """A line with how many problems each bin has and where it ends."""
        counts = [[sum(self.number.get(_key(p)) == i for p in problems) for problems in self.files] for i in range(len(self.edges) + 1)]
        ends = [f" (to {edge:.4g})" for edge in self.edges] + [""]
        parts = [f"bin {i}{ends[i]}: {train} training and {probe} probe problems" for i, (train, probe) in enumerate(counts)]
        return "difficulty bins, easiest first: " + "; ".join(parts)

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint's part `run`; nothing where nothing is sorted. -1: a problem that the run does not use."""
        if not self.number:
            return {}
        numbers = [[self.number.get(_key(problem), -1) for problem in problems] for problems in self.files]
        return {"difficulty_edges": list(self.edges), "difficulty_bins": numbers}

    def load_state_dict(self, run: Mapping[str, Any]) -> None:
        """Take them from a checkpoint's part `run`, whose problems are the same."""
        self.edges = list(run.get("difficulty_edges", []))
        files = zip(self.files, run.get("difficulty_bins", [[], []]), strict=True)
        self.number = {_key(p): number for problems, numbers in files for p, number in zip(problems, numbers, strict=False) if number >= 0}


def _key(problem: Problem) -> Key:
    return problem.id, problem.problem


def by_key(problems: Sequence[Problem], values: Sequence[float]) -> dict[Key, float]:
    """The values under the problems' keys."""
    return {_key(problem): value for problem, value in zip(problems, values, strict=True)}


def field_values(problems: Sequence[Problem], name: str) -> list[float]:
    """The number under `name` in each problem's line of the problem file. Raises DataError for a problem without one."""
    return list(_numbers(problems, name))


def _numbers(problems: Sequence[Problem], name: str) -> Iterator[float]:
    for problem in problems:
        value = problem.metadata.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(
                f"problem {problem.id!r}: exposure.difficulty is field, but its `{name}` is {value!r}, must be a number: give one to each "
                "problem, or set exposure.difficulty_field"
            )
        yield float(value)
