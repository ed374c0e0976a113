"""The grading benchmark: its answers have the verdicts that they claim, and its figures reach the file."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.made_answers import KINDS, made
from megatron_atesd.evaluate.equivalence import fast_verdict, slow_verdict

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", KINDS)
def test_made_answers_have_the_verdicts_that_they_claim(kind: str):
    pairs = made(kind, 24, random.Random(3))
    assert [claimed for _, _, claimed in pairs] == [True, False] * 12
    for answer, gold, claimed in pairs:
        verdict = fast_verdict(answer, gold)
        assert (slow_verdict(answer, gold) if verdict is None else verdict) == claimed, (answer, gold)


def test_mixed_answers_are_of_every_kind_in_equal_shares_and_no_two_are_equal():
    pairs = made("mixed", 100, random.Random(3))
    assert len({*pairs}) == 100
    assert sum(claimed for _, _, claimed in pairs) == 50
    assert sum(answer.strip("-.").replace(",", "").isdigit() and gold.isdigit() for answer, gold, _ in pairs) >= 20


def test_the_figures_reach_the_file(tmp_path: Path):
    out = tmp_path / "bench.json"
    command = [sys.executable, "tools/bench_grading.py", "--kinds", "integers,text", "--pairs", "4", "--workers", "1", "--repeats", "1"]
    subprocess.run([*command, "--out", str(out)], cwd=ROOT, check=True, capture_output=True)
    rows = json.loads(out.read_text())["rows"]
    assert [row["kind"] for row in rows] == ["integers", "text"]
    assert all(way["right"] == 1 for row in rows for way in row["ways"].values())
    assert {"ours", "sympy"} <= rows[0]["ways"].keys()


def test_an_unknown_kind_is_refused():
    command = [sys.executable, "tools/bench_grading.py", "--kinds", "poems"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "poems" in done.stderr
