"""Correlations of signals with what accuracy gains, against a slow and obvious way."""

from statistics import correlation, mean, stdev
from typing import Any

import pytest

from megatron_atesd.study.signals import correlations
from megatron_atesd.study.tables import markdown

FALLS = {"A": [0.1, 0.3, 0.2], "B": [0.1, 0.0, 0.4], "C": [0.3, 0.2, 0.0]}
GAINS = {"A": [0.0, 0.2, 0.3], "B": [0.2, 0.1, 0.4], "C": [0.1, 0.1, 0.05]}


def check(base: str, falls: list[float], gains: list[float]) -> dict[str, Any]:
    changes = [{"alpha": i / 2, "probe_nll": -fall, "accuracy": gain} for i, (fall, gain) in enumerate(zip(falls, gains, strict=True))]
    return {"task": "late", "base": base, "lead": 0, "updates": 5, "changes": changes}


def results(checks: list[dict[str, Any]]) -> dict[str, Any]:
    return {"checks": checks, "tasks": ["late"], "runs": [], "planned": 0, "unit": "base", "update": 5, "samples": 4}


def test_a_correlation_is_the_mean_of_the_bases_with_its_t_interval():
    found = correlations(results([check(base, FALLS[base], GAINS[base]) for base in FALLS]))["probe_nll"]["late", 0]
    values = [correlation(FALLS[base], GAINS[base]) for base in FALLS]
    half = 4.302653 * stdev(values) / 3**0.5
    assert (found["bases"], found["mean"]) == (3, pytest.approx(mean(values)))
    assert found["ci95"] == pytest.approx([max(-1, mean(values) - half), min(1, mean(values) + half)], abs=1e-5)


def test_one_base_has_no_interval_and_a_flat_one_no_correlation():
    one = [check("A", FALLS["A"], GAINS["A"]), check("B", [0.1, 0.1, 0.1], GAINS["B"])]
    found = correlations(results(one))["probe_nll"]["late", 0]
    assert (found["bases"], found["ci95"]) == (1, None)


def test_the_table_has_a_column_a_task_and_a_row_a_signal():
    text = markdown(results([check(base, FALLS[base], GAINS[base]) for base in FALLS]), {})
    assert "| signal | late, updates 1 to 5 |" in text
    (row,) = (line for line in text.splitlines() if line.startswith("| probe_nll"))
    assert row.startswith(f"| probe_nll | {mean(correlation(FALLS[base], GAINS[base]) for base in FALLS):+.2f} (")
