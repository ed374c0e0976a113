"""The benchmark's smoke workload from the command to its file: every contender runs, and all do the same work."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--only", "smoke", "--dtypes", "fp32", "--device", "cpu", "--steps", "1", "--warmup", "1", "--tokens", "48", "--chunk", "16")
pytestmark = pytest.mark.slow


def bench(out: Path, *more: str) -> dict[str, Any]:
    """What the smoke workload gives: the JSON file's content, and what was printed."""
    command = [sys.executable, str(ROOT / "tools" / "bench_distill.py"), *QUICK, *more, "--out", str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    return json.loads(out.read_text()) | {"stdout": ended.stdout, "stderr": ended.stderr}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return bench(tmp_path_factory.mktemp("bench") / "bench.json")


@pytest.fixture(scope="module")
def with_lora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    more = ("--lora", "--lora-rank", "8", "--contenders", "ours-lora,ours", "--baseline", "ours")
    return bench(tmp_path_factory.mktemp("bench") / "lora.json", *more)


def by(rows: list[dict[str, Any]], key: str) -> dict[str, dict[str, Any]]:
    return {row[key]: row for row in rows}


def test_every_contender_is_timed_in_every_phase(measured: dict[str, Any]) -> None:
    """A phase whose stopwatch nobody started has taken no time."""
    seconds = {name: row["seconds"] for name, row in by(measured["step"], "contender").items()}
    assert set(seconds) == {"ours", "naive", "plain"}
    for phases in seconds.values():
        assert {phase for phase, value in phases.items() if value > 0} == {"teacher", "student", "loss", "optimizer"}


def test_the_loss_part_has_a_row_for_every_way_to_the_loss(measured: dict[str, Any]) -> None:
    rows = by(measured["loss"], "method")
    assert set(rows) - {"compiled"} == {"fused", "dense", "products"}  # without a C++ compiler compiled is left out
    assert {row["tokens"] for row in rows.values()} == {48}


@pytest.mark.parametrize("figure", ["loss", "grad_norm"])
def test_contenders_agree_in_the_first_steps_result(figure: str, measured: dict[str, Any]) -> None:
    rows = by(measured["step"], "contender")
    assert rows["plain"][figure] > 1e-3  # teacher and student differ by more than rounding
    assert rows["ours"][figure] == pytest.approx(rows["plain"][figure], rel=1e-4)
    assert rows["naive"][figure] == pytest.approx(rows["plain"][figure], rel=1e-4)


def test_the_tables_show_every_row(measured: dict[str, Any]) -> None:
    assert all(name in measured["stdout"] for name in ("ours", "naive", "plain", "fused", "dense", "products"))
    assert "…" not in measured["stdout"]  # nothing cut


def test_trl_without_an_interpreter_is_left_out_with_the_reason(measured: dict[str, Any]) -> None:
    assert "trl left out: give --trl-python" in measured["stderr"]


def test_adapters_are_timed_against_all_weights_from_the_same_loss(with_lora: dict[str, Any]) -> None:
    """B is zero at the start: both have the base's logits, and other gradients."""
    rows = by(with_lora["step"], "contender")
    assert set(rows) == {"ours-lora", "ours"}
    assert all(value > 0 for value in rows["ours-lora"]["seconds"].values())
    assert rows["ours-lora"]["loss"] == pytest.approx(rows["ours"]["loss"], rel=1e-6)
    assert 1e-3 < rows["ours-lora"]["grad_norm"] != pytest.approx(rows["ours"]["grad_norm"], rel=0.01)
    assert rows["ours-lora"]["ratio_memory_ours"] == rows["ours-lora"]["over_start_gib"] / rows["ours"]["over_start_gib"]


def test_the_loss_part_of_lora_has_a_head_that_learns_and_a_frozen_one(with_lora: dict[str, Any]) -> None:
    assert set(by(with_lora["loss"], "method")) == {"fused", "fused-frozen", "products", "products-frozen"}
    assert all(name in with_lora["stdout"] for name in ("ours-lora", "fused-frozen", "÷ ours"))
    assert "…" not in with_lora["stdout"]  # nothing cut
