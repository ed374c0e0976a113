"""Which problems an update trains on: a pure function of the update number, so a resumed run needs no position."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from megatron_atesd.errors import CheckpointError, ConfigError, DataError
from megatron_atesd.records import Problem


class ProblemSampler:
    """Seeded epochs over a data set, shared out over data-parallel ranks.

    The stream of problems is one permutation an epoch, back to back; update u takes positions [u·batch, (u+1)·batch) of it,
    so batches run across epoch borders and nothing is repeated or skipped within an epoch. A rank gets a contiguous share:
    the ranks' shares in order are the same batch for every dp_size.
    """

    def __init__(self, problems: Sequence[Problem], batch: int, seed: int, dp_rank: int = 0, dp_size: int = 1) -> None:
        """batch: problems of one update over all ranks; raises ConfigError unless dp_size divides it."""
        if not problems:
            raise DataError("no problems to sample from: data.train must hold at least one")
        if batch < 1 or batch % dp_size:
            raise ConfigError(f"data.batch is {batch}, but must be a positive multiple of the data-parallel size {dp_size}")
        self._problems = list(problems)
        self._batch = batch
        self._seed = seed
        self._share = range(dp_rank * batch // dp_size, (dp_rank + 1) * batch // dp_size)
        self._permutation = lru_cache(maxsize=2)(self._shuffled)
        self._fingerprint = fingerprint(problems)

    def batch_at(self, update: int) -> list[Problem]:
        """This rank's batch / dp_size problems of update `update` (any number from 0; consecutive updates are consecutive in the data)."""
        size = len(self._problems)
        first = self.place_at(update)
        return [self._problems[self._permutation(p // size)[p % size]] for p in range(first, first + len(self._share))]

    def used(self, updates: int) -> list[Problem]:
        """The problems of the first `updates` updates over all ranks, each once, in the order of the data set."""
        places = sorted(self._permutation(0)[: updates * self._batch])
        return [self._problems[place] for place in places]

    def place_at(self, update: int) -> int:
        """Position in the stream of the first problem of `batch_at`; the others follow it one by one."""
        return update * self._batch + self._share.start

    def _shuffled(self, epoch: int) -> list[int]:
        order = list(range(len(self._problems)))
        random.Random(f"{self._seed}/{epoch}").shuffle(order)
        return order

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: not a position, only what makes `batch_at` the same function."""
        return {"fingerprint": self._fingerprint, "seed": self._seed, "batch": self._batch}

    def check(self, state: Mapping[str, Any]) -> None:
        """Raise CheckpointError when a checkpoint's sampler would have drawn other problems than this one."""
        remedies = {
            "fingerprint": "data.train holds other problems than the run it resumes: give the same file",
            "seed": "run.seed differs from the run it resumes: set it back",
            "batch": "data.batch differs from the run it resumes: set it back",
        }
        for name, value in self.state_dict().items():
            if state.get(name) != value:
                raise CheckpointError(f"{remedies[name]}, or start a new run directory (checkpoint {state.get(name)}, now {value})")


def fingerprint(problems: Sequence[Problem]) -> str:
    """Short SHA-256 of the texts, answers and order of a data set."""
    digest = hashlib.sha256()
    for p in problems:
        for text in (p.id, p.problem, p.solution, p.answer):
            raw = text.encode("utf-8", "surrogatepass")
            digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()[:16]
