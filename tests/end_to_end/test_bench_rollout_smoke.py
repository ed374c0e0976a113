"""The benchmark of rollouts from the command to its file, on a tiny model: real processes, at one and two tensor-parallel ranks."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bench")
    sizes = json.loads((ROOT / "tools" / "benchmarks" / "workloads.json").read_text())["smoke"] | {"prompt_tokens": 12}
    (folder / "sizes.json").write_text(json.dumps({"tiny": sizes}))
    quick = ("--sizes", str(folder / "sizes.json"), "--workloads", "tiny", "--batches", "2", "--lengths", "mixed", "--device", "cpu")
    engines = ("--engines", "training,transformers", "--tensors", "1,2")
    command = [sys.executable, str(ROOT / "tools" / "bench_rollout.py"), *quick, *engines, "--out", str(folder / "bench.json")]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    return json.loads((folder / "bench.json").read_text()) | {"stdout": ended.stdout}


def test_every_row_says_what_it_is_and_what_was_found(measured: dict[str, Any]) -> None:
    rows = measured["rows"]
    assert [(row["workload"], row["batch"], row["lengths"], row["engine"], row["tensor"]) for row in rows] == [
        ("tiny", 2, "mixed", "training", 1), ("tiny", 2, "mixed", "training", 2), ("tiny", 2, "mixed", "transformers", 1),
    ]  # fmt: skip
    for row in rows:
        assert {"tokens_per_second", "slot_use", "peak_gib", "seconds", "sampling"} < set(row)
        assert (row["sampling"]["top_k"], row["sampling"]["max_new_tokens"]) == (20, 512)


def test_every_engine_generates_as_many_tokens(measured: dict[str, Any]) -> None:
    """Eight prompts, whose responses are evenly spread from 16 to 512 tokens."""
    assert {row["tokens"] for row in measured["rows"]} == {sum(round(16 + 496 * i / 7) for i in range(8))}


def test_ratios_are_those_of_the_rows(measured: dict[str, Any]) -> None:
    base = measured["rows"][-1]["tokens_per_second"]
    assert [row["ratio_tokens_per_second"] for row in measured["rows"]] == [row["tokens_per_second"] / base for row in measured["rows"]]


def test_the_table_shows_every_engine_uncut(measured: dict[str, Any]) -> None:
    assert all(name in measured["stdout"] for name in ("training", "transformers", "mixed"))
    assert "…" not in measured["stdout"]
