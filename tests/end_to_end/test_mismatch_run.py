"""The curve of the mismatch as users ask for it, on one process and on several at other layouts."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from tests.support.launch import run_distributed
from tests.support.small_run import ROOT, save_inputs

pytestmark = pytest.mark.slow
LAYOUTS = {"TP 2": ("--parallel.tensor=2",), "PP 2": ("--parallel.tensor=1", "--parallel.pipeline=2"), "DP 2": ("--parallel.tensor=1",)}


def command(inputs: Path, out: Path, *settings: str) -> None:
    """tools/mismatch.py in a rank's process."""
    words = ["--config", ROOT / "examples" / "quickstart" / "atesd.yaml", "--model", inputs / "hf", "--data", inputs / "probe.jsonl"]
    flags = ["--alphas", "0,.5,1", "--problems", "7", "--samples", "2", "--rollout.max_new_tokens", "16"]
    sys.argv = ["mismatch.py", *map(str, [*words, *flags, "--out", out, *settings])]
    sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
    runpy.run_path(str(ROOT / "tools" / "mismatch.py"), run_name="__main__")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def alone(inputs: Path) -> dict[str, Any]:
    run_distributed(command, 1, inputs, inputs / "alone", "--parallel.tensor=1", "--bench=1")
    return json.loads((inputs / "alone" / "mismatch.json").read_text())


def test_it_writes_a_curve_and_its_picture(inputs: Path, alone: dict[str, Any]) -> None:
    assert [row["alpha"] for row in alone["rows"]] == [0, 0.5, 1]
    assert [row["revealed"] for row in alone["rows"]] == sorted(row["revealed"] for row in alone["rows"])
    assert alone["monotone_p"] == max(step["p_value"] for step in alone["steps"])
    assert (alone["problems"], alone["samples"], alone["data"]) == (7, 2, str(inputs / "probe.jsonl"))
    assert sorted(path.name for path in (inputs / "alone").iterdir()) == ["mismatch.json", "mismatch.png"]
    assert imread(inputs / "alone" / "mismatch.png")[..., :3].std() > 0.05  # more than an empty page


def test_its_cost_is_a_ratio_to_one_exposure_of_the_same_run(alone: dict[str, Any]) -> None:
    cost, prompts = alone["cost"], alone["teacher_prompts"]
    assert cost["exposures"] == 3
    assert all(value > 0 for value in (*cost["seconds"].values(), *cost["curve_by"].values()))
    tokens = cost["tokens"]
    assert tokens["teacher_pass"] < tokens["exposure"] < tokens["least"] < tokens["curve"]
    assert prompts["different"] <= prompts["all"] == 3 * 7 * 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_the_same_at_every_layout(inputs: Path, alone: dict[str, Any], layout: str) -> None:
    out = inputs / layout
    run_distributed(command, 2, inputs, out, *LAYOUTS[layout])
    found = json.loads((out / "mismatch.json").read_text())
    assert found["tokens"] == alone["tokens"]
    for row, expected in zip(found["rows"], alone["rows"], strict=True):
        errors, expected_errors = row.pop("errors"), expected["errors"]
        assert row == pytest.approx({name: value for name, value in expected.items() if name != "errors"}, rel=1e-4, abs=1e-6)
        assert errors == pytest.approx(expected_errors, rel=1e-3, abs=1e-6)
