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
from megatron_atesd.config import load_config
from megatron_atesd.data.problems import load_problems
from megatron_atesd.evaluate.average import summarize as figures_of
from megatron_atesd.faults.state import metrics
from tests.support.patience import PATIENCE
from tests.support.small_run import ROOT

pytestmark = pytest.mark.slow

UPDATES, SAMPLES, PROBLEMS = 3, 2, 10
# So many warm-up updates that some responses are right, which is what `aligned` measures progress by.
SIZES = {"UPDATES": UPDATES, "SAMPLES": SAMPLES, "TEST_PROBLEMS": PROBLEMS, "WARM_UPDATES": 150}
TASKS, ARMS = ("late", "det"), ("aligned", "learned")
RUNS = {"late": {"aligned": "aligned", "learned": "learned"}, "det": {"aligned": "aligned-det", "learned": "learned-det"}}


@dataclass(frozen=True)
class Quickstart:
    out: Path
    base_hf: Path
    said: str

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.out / "summary.json").read_text())


def run_script(folder: Path, **variables: object) -> subprocess.CompletedProcess[str]:
    given = SIZES | {"OUT": folder / "out", "CACHES": folder / "caches", "PYTHON": sys.executable, "PYTHONPATH": ROOT}
    given |= {"TASKS": " ".join(TASKS), "ARMS": " ".join(ARMS)} | variables
    environment = os.environ | {name: str(value) for name, value in given.items()}
    script = ["bash", str(ROOT / "examples" / "quickstart" / "run.sh")]
    return subprocess.run(script, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    folder = tmp_path_factory.mktemp("quickstart")
    result = run_script(folder)
    assert result.returncode == 0, result.stdout[-5000:]
    (base_hf,) = (folder / "caches").glob("*/base-hf")
    return Quickstart(folder / "out", base_hf, result.stdout)


def test_every_conversion_was_verified(quickstart: Quickstart) -> None:
    logs = [(quickstart.out / run / "log.txt").read_text() for runs in RUNS.values() for run in runs.values()]
    assert [text.count("verify: largest logit difference") for text in (quickstart.said, *logs)] == [2, 1, 1, 1, 1]


def test_training_changed_every_weight_of_the_exported_model(quickstart: Quickstart) -> None:
    base = load_file(quickstart.base_hf / "model.safetensors")
    final = load_file(quickstart.out / "aligned" / "hf" / "model.safetensors")
    assert base.keys() == final.keys()
    assert [name for name in base if torch.equal(base[name], final[name])] == []


def test_the_summary_tells_what_was_run(quickstart: Quickstart) -> None:
    summary = quickstart.summary
    headline = {"task": "late", "arm": "aligned", "steps": UPDATES, "k": SAMPLES, "problems": PROBLEMS}
    assert {name: summary[name] for name in headline} == headline
    assert summary["arms"] == summary["tasks"]["late"]
    assert 0 < summary["training_seconds"] < summary["seconds"]


def test_the_summarys_exposures_are_those_of_the_metrics(quickstart: Quickstart) -> None:
    alphas = {
        task: {arm: [line["exposure/alpha"] for line in metrics(quickstart.out / run)] for arm, run in runs.items()}
        for task, runs in RUNS.items()
    }
    told = {task: {arm: part["exposure_trace"] for arm, part in arms.items()} for task, arms in quickstart.summary["tasks"].items()}
    assert told == alphas
    assert quickstart.summary["exposure_trace"] == alphas["late"]["aligned"]
    assert len(alphas["det"]["learned"]) == UPDATES


def test_the_tasks_differ_in_how_references_are_written_alone(quickstart: Quickstart) -> None:
    problems = [load_problems(quickstart.out / data / "train.jsonl") for data in ("data", "data-det")]
    late, det = ([(p.problem, p.answer) for p in part] for part in problems)
    assert late == det
    shorter = [len(one.solution.splitlines()) < len(two.solution.splitlines()) for one, two in zip(*problems, strict=True)]
    assert shorter == [p.metadata["difficulty"] > 3 for p in problems[0]]


def test_each_arm_is_trained_as_it_says(quickstart: Quickstart) -> None:
    """The aligned arms tensor-parallel, the paper's controller in one process and with its own settings; nothing else differs."""
    files = [str(ROOT / "examples" / "quickstart" / name) for name in ("atesd.yaml", "paper.yaml")]
    exposure = {"aligned": load_config(["--config", files[0]]).exposure, "learned": load_config([f"--config={f}" for f in files]).exposure}
    assert (exposure["aligned"].mode, exposure["learned"].mode, exposure["learned"].progress) == ("aligned", "learned", "probe_nll")
    for task, data in (("late", "data"), ("det", "data-det")):
        for arm, processes in (("aligned", 2), ("learned", 1)):
            config = load_config(["--config", str(quickstart.out / RUNS[task][arm] / "config.yaml")])
            assert config.exposure == exposure[arm]
            assert (config.parallel.tensor, Path(config.data.train).parent.name, config.distill.clip_mode) == (processes, data, "token")


@pytest.mark.parametrize(("when", "folder"), [("base", "base"), ("final", "aligned/evaluation")])
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
    for when, folder, share in (("base", "base", 0.3), ("final", "aligned/evaluation", 0.7)):
        table = draw.random((PROBLEMS, SAMPLES + 1)) < share
        evaluations[when] = json.loads((out / folder / "evaluation.json").read_text()) | figures_of(table[:, 1:], table[:, 0])
        (out / folder / "evaluation.json").write_text(json.dumps(evaluations[when]))
    monkeypatch.setattr(sys, "argv", ["summarize", "--out", str(out), "--tasks", "late", "--arms", "aligned", "--seconds", "100"])
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


def test_an_arm_that_fails_ends_the_script_with_what_it_said(quickstart: Quickstart) -> None:
    """With the base of the run before; side by side with an arm that can go on."""
    folder = quickstart.out.parent
    again = run_script(folder.parent / "failing", CACHES=folder / "caches", TASKS="late", ARMS="fixed learned", UPDATES=0)
    assert again.returncode == 1
    assert "error: run.updates" in again.stdout
    assert "failed to train" in again.stdout
    assert not (folder.parent / "failing" / "out" / "summary.json").exists()


def test_a_task_that_is_none_is_refused_before_any_work(tmp_path: Path) -> None:
    refused = run_script(tmp_path, TASKS="late early")
    assert (refused.returncode, refused.stdout) == (2, "error: TASKS has 'early', must be of late, det, lateh and rand\n")
    assert list(tmp_path.iterdir()) == []
