"""Numbers that are no longer finite: weights and probe values with which a run must not go on, and updates that were skipped."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from megatron_atesd.errors import CheckpointError, TrainingError
from megatron_atesd.logs import warn_here
from megatron_atesd.model.finite import all_finite
from megatron_atesd.records import Rollout

FILES = 16  # kept of one rank


def check_weights(named: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Raise CheckpointError that names the first of the weights, loaded from `folder`, with a value that is not finite."""
    for name, weight in named:
        if not all_finite(weight):
            raise CheckpointError(f"{folder}: {name} holds NaN or infinite values; take another checkpoint, or convert the model anew")


def check_probe(values: Mapping[str, float | None], update: int) -> None:
    """Raise TrainingError when a probe value after `update` finished updates is not finite: the weights themselves are broken."""
    for name, value in values.items():
        if value is not None and not math.isfinite(value):
            raise TrainingError(
                f"{name} is {value} after {update} updates: the weights are broken, and nothing of them was saved; "
                "the newest checkpoint is from before: lower optimizer.lr, and look at the problems of the last updates"
            )


class Skipped:
    """The updates of a run that were skipped: how many in a row, and their batches in `folder`."""

    def __init__(self, folder: Path, limit: int) -> None:
        """limit: so many in a row are too many."""
        self.folder, self.limit, self.in_a_row = folder, limit, 0

    def count(self, skipped: bool) -> None:
        """Take in one update."""
        self.in_a_row = self.in_a_row + 1 if skipped else 0

    @property
    def too_many(self) -> bool:
        """Whether the run must end."""
        return self.in_a_row >= self.limit

    def error(self, checkpoint: Path, left: int) -> TrainingError:
        """What to tell the user; checkpoint: where the state, which the skipped updates left as it was, has been saved; left: updates."""
        further = "the same command goes on with the next problems" if left else "no update is left"
        return TrainingError(
            f"{self.in_a_row} updates in a row had a loss or gradient that is not finite, and were skipped (run.max_skipped {self.limit}). "
            f"Nothing is lost: {checkpoint} holds the weights from before them; {further}. The batches are in {self.folder}"
        )

    def save(self, update: int, rank: int, alphas: Sequence[float], rollouts: Sequence[Rollout], losses: Sequence[float]) -> None:
        """Write this data-parallel rank's batch to update_<update>_rank_<rank>.jsonl, one line an example; the oldest of many files go.

        alphas: of each rollout. losses: mean a response token of each example, computed again; what is not finite becomes null.
        Files that cannot be written are no reason to end the run: a warning says so.
        """
        try:
            self._write(update, rank, alphas, rollouts, losses)
        except OSError as error:
            warn_here(f"the batch of skipped update {update} is not kept: {error}: make room in {self.folder} if it is to be looked at")

    def _write(self, update: int, rank: int, alphas: Sequence[float], rollouts: Sequence[Rollout], losses: Sequence[float]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [_line(*example) for example in zip(alphas, rollouts, losses, strict=True)]
        (self.folder / f"update_{update}_rank_{rank}.jsonl").write_text("".join(lines))
        files = sorted(self.folder.glob(f"update_*_rank_{rank}.jsonl"), key=lambda path: int(path.name.split("_")[1]))
        for old in files[:-FILES]:
            old.unlink()


def _line(alpha: float, rollout: Rollout, loss: float) -> str:
    record = {
        "problem": rollout.problem.id,
        "alpha": alpha,
        "loss": loss if math.isfinite(loss) else None,
        "truncated": rollout.truncated,
        "prompt_ids": rollout.prompt_ids,
        "response_ids": rollout.response_ids,
    }
    return json.dumps(record, allow_nan=False) + "\n"
