"""The benchmark's smoke workload from the command to its file: every contender runs, and all do the same work."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--only", "smoke", "--dtypes", "fp32", "--device", "cpu", "--steps", "1", "--warmup", "1", "--tokens", "48", "--chunk", "16")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the smoke workload gives: the JSON file's content, and what was printed."""
    out = tmp_path_factory.mktemp("bench") / "bench.json"
    command = [sys.executable, str(ROOT / "tools" / "bench_distill.py"), *QUICK, "--out", str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    return json.loads(out.read_text()) | {"stdout": ended.stdout, "stderr": ended.stderr}


def by(rows: list[dict[str, Any]], key: str) -> dict[str, dict[str, Any]]:
    return {row[key]: row for row in rows}


def numbers(value: Any) -> list[float]:
    """All numbers in nested dictionaries."""
    if isinstance(value, dict):
        return [number for part in value.values() for number in numbers(part)]
    return [] if isinstance(value, str) else [value]


def test_every_contender_gives_finite_positive_figures(measured: dict[str, Any]) -> None:
    rows = by(measured["step"], "contender")
    assert set(rows) == {"ours", "naive", "plain"}
    assert {phase for row in rows.values() for phase in row["seconds"]} == {"teacher", "student", "loss", "optimizer"}
    assert all(math.isfinite(number) and number > 0 for row in rows.values() for number in numbers(row))


def test_every_way_to_the_loss_gives_finite_positive_figures(measured: dict[str, Any]) -> None:
    rows = by(measured["loss"], "method")
    assert set(rows) - {"compiled"} == {"fused", "dense", "products"}  # without a C++ compiler compiled is left out
    timed = [{name: value for name, value in row.items() if "gib" not in name and "memory" not in name} for row in rows.values()]
    assert all(math.isfinite(number) and number > 0 for number in numbers(dict(enumerate(timed))))


@pytest.mark.parametrize("figure", ["loss", "grad_norm"])
def test_contenders_agree_in_the_first_steps_result(figure: str, measured: dict[str, Any]) -> None:
    rows = by(measured["step"], "contender")
    assert rows["plain"][figure] > 1e-3  # teacher and student differ by more than rounding
    assert rows["ours"][figure] == pytest.approx(rows["plain"][figure], rel=1e-4)
    assert rows["naive"][figure] == pytest.approx(rows["plain"][figure], rel=1e-4)


def test_ratios_refer_to_the_baseline(measured: dict[str, Any]) -> None:
    rows = by(measured["step"], "contender")
    assert rows["plain"]["ratio_seconds"] == rows["plain"]["ratio_memory"] == 1
    assert rows["ours"]["ratio_seconds"] == pytest.approx(rows["ours"]["training_seconds"] / rows["plain"]["training_seconds"])


def test_the_tables_show_every_row(measured: dict[str, Any]) -> None:
    assert all(name in measured["stdout"] for name in ("ours", "naive", "plain", "fused", "dense", "products"))
    assert "…" not in measured["stdout"]  # nothing cut


def test_trl_without_an_interpreter_is_left_out_with_the_reason(measured: dict[str, Any]) -> None:
    assert "trl left out: give --trl-python" in measured["stderr"]
