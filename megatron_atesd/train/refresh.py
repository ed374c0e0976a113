"""When a teacher of the kind `refreshed` becomes a copy of the student: only on a gain in held-out progress, and not too soon.

Between two refreshes it is frozen, and a student that got worse never becomes the teacher (the idea of arXiv 2606.03532).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class GainGate:
    """every: updates that a teacher stays at least.

    best: the progress loss (lower is better) of the weights that the teacher has now, None before it was measured. since: the number of
    updates after which it has them.
    """

    every: int
    best: float | None = None
    since: int = 0

    def opens(self, update: int, progress: float | None) -> bool:
        """Whether the student, with this progress loss after `update` updates, becomes the teacher; None: it was not measured."""
        if progress is None:
            return False
        if self.best is None:  # of the start, whose weights the teacher has
            self.best = progress
            return False
        if update - self.since < self.every or progress >= self.best:
            return False
        self.best, self.since = progress, update
        return True

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint's part `run`; nothing where nothing was measured."""
        return {} if self.best is None else {"teacher_best": self.best, "teacher_since": self.since}

    def load_state_dict(self, run: Mapping[str, Any]) -> None:
        """Take them from a checkpoint's part `run`."""
        self.best, self.since = run.get("teacher_best"), run.get("teacher_since", 0)
