"""The quickstart, start to end and in miniature: the script that users run, with its sizes turned down."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from safetensors.torch import load_file

from examples.quickstart import summarize
from megatron_atesd.evaluate.average import summarize as figures_of
from megatron_atesd.faults.state import metrics
from tests.support.patience import PATIENCE
from tests.support.small_run import ROOT

pytestmark = pytest.mark.slow

UPDATES, SAMPLES, PROBLEMS = 3, 2, 10
SIZES = {"UPDATES": UPDATES, "SAMPLES": SAMPLES, "TEST_PROBLEMS": PROBLEMS, "WARM_UPDATES": 20}


@dataclass(frozen=True)
class Quickstart:
    out: Path
    base_hf: Path
    said: str

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.out / "summary.json").read_text())


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    folder = tmp_path_factory.mktemp("quickstart")
    environment = os.environ | {name: str(size) for name, size in SIZES.items()}
    environment |= {"OUT": str(folder / "out"), "CACHES": str(folder / "caches"), "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    script = ["bash", str(ROOT / "examples" / "quickstart" / "run.sh")]
    result = subprocess.run(script, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stdout[-5000:]
    (base_hf,) = (folder / "caches").glob("*/base-hf")
    return Quickstart(folder / "out", base_hf, result.stdout)


def test_every_conversion_was_verified(quickstart: Quickstart) -> None:
    assert quickstart.said.count("verify: largest logit difference") == 3


def test_training_changed_every_weight_of_the_exported_model(quickstart: Quickstart) -> None:
    base = load_file(quickstart.base_hf / "model.safetensors")
    final = load_file(quickstart.out / "learned" / "hf" / "model.safetensors")
    assert base.keys() == final.keys()
    assert [name for name in base if torch.equal(base[name], final[name])] == []


def test_the_summary_tells_what_was_run(quickstart: Quickstart) -> None:
    summary = quickstart.summary
    assert (summary["arm"], summary["steps"], summary["k"], summary["problems"]) == ("learned", UPDATES, SAMPLES, PROBLEMS)
    assert 0 < summary["training_seconds"] < summary["seconds"]


def test_the_summarys_exposures_are_those_of_the_metrics(quickstart: Quickstart) -> None:
    alphas = [line["exposure/alpha"] for line in metrics(quickstart.out / "learned")]
    assert quickstart.summary["exposure_trace"] == alphas
    assert len(alphas) == UPDATES
    assert all(0 < alpha < 1 for alpha in alphas)


@pytest.mark.parametrize(("when", "folder"), [("base", "base"), ("final", "learned/evaluation")])
def test_the_summarys_figures_are_those_of_the_graded_responses(quickstart: Quickstart, when: str, folder: str) -> None:
    responses = [json.loads(line) for line in (quickstart.out / folder / "responses.jsonl").read_text().splitlines()]
    assert len(responses) == PROBLEMS * (SAMPLES + 1)
    right = {greedy: [r["right"] for r in responses if (r["sample"] == -1) is greedy] for greedy in (True, False)}
    summary = quickstart.summary
    assert summary[f"{when}_average_at_k"] == pytest.approx(np.mean(right[False]))
    assert summary[f"{when}_greedy"] == pytest.approx(np.mean(right[True]))


def test_figures_and_intervals_land_under_their_names(quickstart: Quickstart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With made-up grades, since so short a training may get every answer wrong."""
    out = shutil.copytree(quickstart.out, tmp_path / "out")
    draw = np.random.default_rng(0)
    evaluations = {}
    for when, folder, share in (("base", "base", 0.3), ("final", "learned/evaluation", 0.7)):
        table = draw.random((PROBLEMS, SAMPLES + 1)) < share
        evaluations[when] = json.loads((out / folder / "evaluation.json").read_text()) | figures_of(table[:, 1:], table[:, 0])
        (out / folder / "evaluation.json").write_text(json.dumps(evaluations[when]))
    monkeypatch.setattr(sys, "argv", ["summarize", "--out", str(out), "--arms", "learned", "--seconds", "100"])
    summarize.main()
    summary = json.loads((out / "summary.json").read_text())
    for when, evaluation in evaluations.items():
        assert summary[f"{when}_average_at_k"] == evaluation["average_at_k"]
        assert summary[f"{when}_average_ci95"] == summary["ci95"][f"{when}_average"] == evaluation["ci95"]
        assert summary[f"{when}_greedy"] == evaluation["greedy"]
        assert summary[f"{when}_greedy_ci95"] == summary["ci95"][f"{when}_greedy"] == evaluation["greedy_ci95"]
    assert summary["base_average_at_k"] < summary["final_average_at_k"]


def test_the_report_has_something_drawn_in_every_quarter(quickstart: Quickstart) -> None:
    """Axes, grid and text are grey; data are in colour."""
    picture = imread(quickstart.out / "report.png")[..., :3]
    coloured = picture.max(axis=-1) - picture.min(axis=-1) > 0.3
    height, width = (size // 2 for size in coloured.shape)
    quarters = [coloured[:height, :width], coloured[:height, width:], coloured[height:, :width], coloured[height:, width:]]
    assert min(quarter.sum() for quarter in quarters) > 500


def test_the_last_words_are_where_to_look(quickstart: Quickstart) -> None:
    assert f"picture in {quickstart.out}/report.png" in quickstart.said
    assert quickstart.said.rstrip().endswith(f"TensorBoard: tensorboard --logdir {quickstart.out}")
