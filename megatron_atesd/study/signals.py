"""Which progress signal tells what accuracy gains: correlations over exposures, from the checks of a study. Pure arithmetic."""

from collections.abc import Mapping
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_atesd.evaluate.uncertainty import t_quantile
from megatron_atesd.train.bias import LIKELIHOODS

Record = Mapping[str, Any]
Place = tuple[str, int]  # task, and updates before the check


def falls_and_gains(results: Record, signal: str) -> dict[Place, dict[str, NDArray[np.float64]]]:
    """By place and base, [A, 2]: by how much the signal fell (nats a token) and accuracy rose (a share) at each exposure."""
    found: dict[Place, dict[str, NDArray[np.float64]]] = {}
    for check in results["checks"]:
        points = [(-row[signal], row["accuracy"]) for row in check["changes"] if signal in row]
        if len(points) > 1:
            found.setdefault((check["task"], check["lead"]), {})[check["base"]] = np.array(points)
    return found


def correlations(results: Record) -> dict[str, dict[Place, Record]]:
    """By signal and place: `mean` of the bases' Pearson correlations, its 95 % interval `ci95` (None with one base), and `bases`.

    One observation is a base; the interval is that of the t distribution. A base where signal or accuracy never moved says nothing.
    """
    found: dict[str, dict[Place, Record]] = {}
    for signal in LIKELIHOODS:
        for place, bases in falls_and_gains(results, signal).items():
            values = [np.corrcoef(points[:, 0], points[:, 1]).item(0, 1) for points in bases.values() if np.all(np.ptp(points, axis=0) > 0)]
            if values:
                found.setdefault(signal, {})[place] = _mean(np.array(values))
    return found


def _mean(values: NDArray[np.float64]) -> Record:
    mean, count = float(values.mean()), len(values)
    if count == 1:
        return {"mean": mean, "ci95": None, "bases": 1}
    half = t_quantile(count - 1) * float(values.std(ddof=1)) / sqrt(count)
    return {"mean": mean, "ci95": [max(-1.0, mean - half), min(1.0, mean + half)], "bases": count}
