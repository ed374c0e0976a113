"""Exposure by difficulty: problems in bins, and for each bin a decider of its own that hears of its own bin's problems only."""

from bisect import bisect_left
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from megatron_atesd.errors import CheckpointError, DataError
from megatron_atesd.exposure.controller import check_mode
from megatron_atesd.records import Exposure, UpdateStats

if TYPE_CHECKING:
    from megatron_atesd.exposure.modes import Mode


def even_edges(values: Sequence[float], bins: int) -> list[float]:
    """The highest difficulty in each of `bins` bins but the last, bins - 1 rising values: as many of `values` in each bin as can be.

    Equal values share a bin. Raises DataError when there are fewer different values than bins.
    """
    levels = sorted(set(values))
    if len(levels) < bins:
        raise DataError(
            f"exposure.bins is {bins}, but the training problems have {len(levels)} different difficulties; lower it, or choose another "
            "exposure.difficulty"
        )
    ordered = sorted(values)
    below = [bisect_left(ordered, level) for level in levels[1:]]  # problems at or below each level but the highest
    edges: list[float] = []
    first = 0
    for number in range(1, bins):
        last = len(below) - (bins - 1 - number)  # each later edge needs a level of its own
        best = min(range(first, last), key=lambda place: abs(below[place] - number * len(values) / bins))
        edges.append(levels[best])
        first = best + 1
    return edges


def bin_number(value: float, edges: Sequence[float]) -> int:
    """Which bin a difficulty falls into, 0 for the easiest; one equal to an edge belongs below it."""
    return bisect_left(edges, value)


def bin_metric(number: int, name: str) -> str:
    """Name of a metric that is of one bin's problems alone."""
    return f"bin{number}/{name}"


class BinnedExposure:
    """As many deciders of one mode as there are bins. Their windows begin together, so that one message tells all exposures."""

    def __init__(self, deciders: "Sequence[Mode]") -> None:
        self.deciders = list(deciders)

    def propose(self, step: int, scores: Sequence[float] | None = None) -> Exposure:
        """See Mode. scores: of each bin's grid, one bin after the other; NaN where a bin has none."""
        size = len(scores or ()) // len(self.deciders)
        parts = [scores[i * size : (i + 1) * size] if scores else None for i in range(len(self.deciders))]
        proposed = [decider.propose(step, part) for decider, part in zip(self.deciders, parts, strict=True)]
        alphas = tuple(exposure.alpha for exposure in proposed)
        return Exposure(fmean(alphas), proposed[0].decision_id, alphas)

    def observe(self, stats: UpdateStats) -> dict[str, float]:
        """What each decider says of its bin, as `bin<number>/<metric>`, and `controller/updates` of all where they learn."""
        found = [decider.observe(part) for decider, part in zip(self.deciders, stats.by_bin, strict=True)]
        learned = [metrics["controller/updates"] for metrics in found if "controller/updates" in metrics]
        metrics = {bin_metric(i, name): value for i, part in enumerate(found) for name, value in part.items()}
        return metrics | ({"controller/updates": sum(learned)} if learned else {})

    def state_dict(self) -> dict[str, Any]:
        """See Mode. decision: the number of the one in force, where the deciders keep it."""
        states = [decider.state_dict() for decider in self.deciders]
        return {"mode": "bins", "bins": states, "decision": states[0].get("decision")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Mode. Raises CheckpointError when it is of another mode or number of bins."""
        check_mode(state, "bins")
        if len(state["bins"]) != len(self.deciders):
            raise CheckpointError(f"the checkpoint has {len(state['bins'])} bins: set exposure.bins to that")
        for decider, part in zip(self.deciders, state["bins"], strict=True):
            decider.load_state_dict(part)
