"""Which arms differ, and by how much it may be chance: means, paired differences, intervals. Pure arithmetic on `results.collect`.

One observation is a base (the mean over its seeds) or, with unit "run", each run. Runs of one base have its weights, problems and habits in
common: as observations of their own they would only tell about these very bases.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_atesd.evaluate.uncertainty import mean_difference

Record = Mapping[str, Any]
Key = tuple[str, int]  # base and seed
BEST = "best fixed α"


def of_arm(results: Record, task: str, arm: str) -> dict[Key, Record]:
    """The runs of an arm on a task."""
    return {(run["base"], run["seed"]): run for run in results["runs"] if (run["task"], run["arm"]) == (task, arm)}


def arms_of(results: Record, task: str) -> list[str]:
    """The arms with a run on the task, in the study's order."""
    return [arm for arm in results["arms"] if of_arm(results, task, arm)]


def observations(values: Mapping[Key, float], unit: str) -> NDArray[np.float64]:
    """One value a unit, [U]."""
    groups: dict[Any, list[float]] = {}
    for key, value in values.items():
        groups.setdefault(key[0] if unit == "base" else key, []).append(value)
    return np.array([np.mean(group) for group in groups.values()], dtype=np.float64)


def mean_and_error(values: Mapping[Key, float], unit: str) -> tuple[float, float | None]:
    """Mean over units and its standard error, None where there is one unit."""
    found = observations(values, unit)
    return float(found.mean()), float(found.std(ddof=1)) / sqrt(len(found)) if len(found) > 1 else None


def best_fixed(results: Record, task: str) -> str | None:
    """The arm of `fixed` with the highest mean, chosen from these very runs: of bases and seeds that all of them have, if there are any."""
    arms = {arm: runs for arm in results["fixed"] if (runs := of_arm(results, task, arm))}
    shared = [key for key in next(iter(arms.values()), {}) if all(key in runs for runs in arms.values())]
    means = {arm: _mean({key: runs[key] for key in shared or runs}, results["unit"]) for arm, runs in arms.items()}
    return max(means, key=lambda arm: means[arm]) if means else None


def references_of(results: Record, task: str) -> dict[str, str]:
    """Arm by the name under which others are compared with it."""
    there = {arm: arm for arm in results["references"] if of_arm(results, task, arm)}
    return there | ({BEST: best} if (best := best_fixed(results, task)) else {})


def difference(results: Record, task: str, arm: str, other: str, comparisons: int) -> dict[str, Any] | None:
    """Accuracy of one arm minus another's over the bases and seeds that both have, with interval and p value, see `mean_difference`.

    units: how many observations there are. None where both are the same arm or have no run in common; with one unit there is no spread to
    judge by, and interval and p value are null.
    """
    ours, theirs = of_arm(results, task, arm), of_arm(results, task, other)
    shared = [key for key in ours if key in theirs]
    if arm == other or not shared:
        return None
    first, second = (observations({key: runs[key]["sampled"] for key in shared}, results["unit"]) for runs in (ours, theirs))
    found = mean_difference(first, second, comparisons)
    unjudged = {"ci95": None, "p_value": None} if len(first) == 1 else {}
    return found | unjudged | {"units": len(first), "runs": len(shared)}


def compare(results: Record) -> dict[str, Any]:
    """By task: `before`, `references`, `comparisons` and a row an arm, JSON-ready; see `_row`.

    comparisons: arms compared with each reference. The intervals of one reference hold together with 95 %.
    """
    return {task: _task(results, task) for task in results["tasks"] if arms_of(results, task)}


def _task(results: Record, task: str) -> dict[str, Any]:
    references, arms = references_of(results, task), arms_of(results, task)
    comparisons = max(1, len(arms) - 1)
    bases = [entry for entry in results["before"] if entry["task"] == task]
    return {
        "before": float(np.mean([entry["sampled"] for entry in bases])) if bases else None,
        "references": references,
        "comparisons": comparisons,
        "arms": {arm: _row(results, task, arm, references, comparisons) for arm in arms},
    }


def _row(results: Record, task: str, arm: str, references: Mapping[str, str], comparisons: int) -> dict[str, Any]:
    runs, unit = of_arm(results, task, arm), results["unit"]
    mean, error = mean_and_error({key: run["sampled"] for key, run in runs.items()}, unit)
    labels = dict.fromkeys(label for run in runs.values() for label in run["by_difficulty"])  # a base may lack problems of some
    parts = {label: {key: run["by_difficulty"][label] for key, run in runs.items() if label in run["by_difficulty"]} for label in labels}
    return {
        "runs": len(runs),
        "mean": mean,
        "error": error,
        "greedy": float(np.mean([run["greedy"] for run in runs.values()])),
        "alpha": float(np.mean([alpha for run in runs.values() for alpha in run["alpha"]])),
        "rollout_tokens": float(np.mean([run["rollout_tokens"] for run in runs.values()])),
        "seconds": float(np.mean([run["seconds"] for run in runs.values()])),
        "by_difficulty": {label: dict(zip(("mean", "error"), mean_and_error(part, unit), strict=True)) for label, part in parts.items()},
        "differences": {name: difference(results, task, arm, other, comparisons) for name, other in references.items()},
    }


def signal_points(results: Record, signal: str) -> dict[str, NDArray[np.float64]]:
    """By task, [N, 2]: a run's signal at the end and its accuracy (a share), both less their means over the arms with its base and seed."""
    found = {task: np.array([*_centred(results, task, signal)]).reshape(-1, 2) for task in results["tasks"]}
    return {task: points for task, points in found.items() if len(points) > 2}


def _centred(results: Record, task: str, signal: str) -> Iterator[Sequence[float]]:
    groups: dict[Key, list[tuple[float, float]]] = {}
    for run in results["runs"]:
        if run["task"] == task and signal in run["signals"]:
            groups.setdefault((run["base"], run["seed"]), []).append((run["signals"][signal], run["sampled"]))
    for group in groups.values():
        if len(group) > 1:
            yield from (np.array(group) - np.mean(group, axis=0)).tolist()


def _mean(runs: Mapping[Key, Record], unit: str) -> float:
    return mean_and_error({key: run["sampled"] for key, run in runs.items()}, unit)[0]
