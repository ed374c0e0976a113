"""From sums of each problem to the curve of the mismatch over the exposure, with the test whether it rises. Pure numpy."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from megatron_atesd.evaluate.uncertainty import mean_a_token, rise_p_value

Counted = tuple[NDArray[np.float64], NDArray[np.float64]]  # sums [N, A] of N problems at A exposures, and the tokens [N] that they are over
_LEAST_P = 1e-9  # below it, rounding says more than the data


def mismatch_curve(alphas: Sequence[float], statistics: Mapping[str, Counted], means: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    """`rows`, `steps` and `monotone_p`, JSON-ready.

    statistics: means a token, `kl` among them (nats). means: [N, A], means a problem. rows: of each exposure all of them, and under
    `errors` their standard errors over problems. steps: from each exposure to the next the rise of the KL, its standard error, and the
    one-sided p value that it does not rise (`rise_p_value`), over the same responses.
    monotone_p: the largest p of the steps. Below 0.05 every step rises, with at most 5 % error: an intersection-union test
    (Berger 1982), which needs no correction for the number of steps. A curve that dips anywhere has a large one.
    """
    every = {**statistics, **{name: (values_NA, np.ones(len(values_NA))) for name, values_NA in means.items()}}
    kl_NA, tokens_N = statistics["kl"]
    steps = [_step(*pair, kl_NA[:, i + 1] - kl_NA[:, i], tokens_N) for i, pair in enumerate(pairwise(alphas))]
    rows = [
        _row(alpha, {name: mean_a_token(sums[:, i], counts) for name, (sums, counts) in every.items()}) for i, alpha in enumerate(alphas)
    ]
    return {"rows": rows, "steps": steps, "monotone_p": max(step["p_value"] for step in steps)}


def _row(alpha: float, found: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    values = {name: value for name, (value, _) in found.items()}
    return {"alpha": alpha, **values, "errors": {name: error for name, (_, error) in found.items()}}


def _step(start: float, end: float, rise_N: NDArray[np.float64], tokens_N: NDArray[np.float64]) -> dict[str, float]:
    rise, error = mean_a_token(rise_N, tokens_N)
    return {"from": start, "to": end, "rise": rise, "error": error, "p_value": rise_p_value(rise_N, tokens_N)}


def mismatch_table(record: Mapping[str, Any]) -> Table:
    """A row an exposure: means ± standard error, and the p value of the step that leads to it."""
    titles = {
        "revealed": "segments",
        "kl": "KL, nats",
        "disagreement": "top-1 differs, %",
        "confidence": "confidence, %",
        "teacher_entropy": "teacher's entropy",
        "grounding": "grounding, nats",
    }
    there = {name: title for name, title in titles.items() if name in record["rows"][0]}
    says = f"the KL rises at every step of α: p {_p_text(record['monotone_p'])}"
    table = Table(title=f"Mismatch between student and teacher, {record['problems']} problems; {says}")
    for title in ("α", *there.values(), "p of the step"):
        table.add_column(title, justify="right")
    p_values = ["", *(_p_text(step["p_value"]) for step in record["steps"])]
    for row, p_value in zip(record["rows"], p_values, strict=True):
        table.add_row(f"{row['alpha']:g}", *(_cell(row, name, "%" in title) for name, title in there.items()), p_value)
    return table


def _p_text(p_value: float) -> str:
    return f"{p_value:.2g}" if p_value >= _LEAST_P else f"< {_LEAST_P:g}"


def _cell(row: Mapping[str, Any], name: str, percent: bool) -> str:
    if name == "revealed":
        return f"{row['revealed']:.1f} of {row['segments']:.1f}"
    scale, digits = (100, 1) if percent else (1, 4)
    return f"{scale * row[name]:.{digits}f} ± {scale * row['errors'][name]:.{digits}f}"
