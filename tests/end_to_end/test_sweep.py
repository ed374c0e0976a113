"""The real thing, small: trainings and evaluations in forks, killed in the middle, end as in a study that was left alone."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_atesd.data.problems import save_problems
from megatron_atesd.data.sources.chain import chain_splits
from megatron_atesd.faults.state import metrics, reproducible
from megatron_atesd.faults.torchrun import kill
from tests.support.fake_study import SWEEP
from tests.support.patience import PATIENCE
from tests.support.small_run import ENVIRONMENT, ROOT, save_inputs

pytestmark = pytest.mark.slow
TEXT = """
out: {out}
seeds: [1]
bases: {{names: [small], model: {inputs}/hf}}
tasks:
  det: {{train: {inputs}/train.jsonl, probe: {inputs}/probe.jsonl, test: {inputs}/test.jsonl}}
settings:
  config: {root}/examples/quickstart/atesd.yaml
  run: {{updates: 6}}
  parallel: {{tensor: 1}}
  data: {{batch: 8}}
  rollout: {{max_new_tokens: 16}}
  checkpoint: {{every: 2, keep: 1}}
  monitor: {{tensorboard: false}}
arms:
  full: {{exposure: {{mode: fixed}}}}
  aligned: {{exposure: {{mode: aligned, hold: 2}}}}
fixed: full
references: full
evaluation: {{update: 4, samples: 2, temperature: 1, max_new_tokens: 16, thinking: false}}
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_inputs(tmp_path_factory.mktemp("inputs"))
    save_problems(chain_splits({"test": 8}, seed=3)["test"], folder / "test.jsonl")
    return folder


def start(folder: Path, inputs: Path) -> subprocess.Popen[bytes]:
    (folder / "study.yaml").write_text(TEXT.format(out=folder / "out", inputs=inputs, root=ROOT))
    with (folder / "said.txt").open("ab") as said:
        words = [sys.executable, SWEEP, str(folder / "study.yaml")]
        return subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT, stdout=said, stderr=subprocess.STDOUT)


def finish(folder: Path, inputs: Path) -> None:
    assert start(folder, inputs).wait(PATIENCE) == 0, (folder / "said.txt").read_text()


def kill_when(folder: Path, inputs: Path, there: str, whole_family: bool) -> None:
    """As soon as the path `there`, which may hold wildcards, exists."""
    job = start(folder, inputs)
    while not any(folder.glob(there)):
        assert job.poll() is None, (folder / "said.txt").read_text()
        time.sleep(0.01)
    if whole_family:
        kill(job)
    job.kill()
    job.wait()


def facts(folder: Path) -> tuple[object, ...]:
    runs = folder / "out" / "runs" / "det" / "small"
    lines = [[reproducible(line) for line in metrics(runs / arm / "1")] for arm in ("full", "aligned")]
    responses = [(runs / arm / "1" / "evaluation" / "responses.jsonl").read_text() for arm in ("full", "aligned")]
    compared = json.loads((folder / "out" / "results.json").read_text())["comparison"]
    for row in compared["det"]["arms"].values():
        del row["seconds"]
    return lines, responses, compared


def test_killed_amid_a_training_and_an_evaluation_it_ends_as_if_left_alone(inputs: Path, tmp_path: Path):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    for folder in (unbroken, broken):
        folder.mkdir()
    finish(unbroken, inputs)
    kill_when(broken, inputs, "out/runs/det/small/full/1/checkpoints/step_2", whole_family=True)
    kill_when(broken, inputs, "out/runs/det/small/full/1/evaluation", whole_family=False)  # its forks see that and end
    kill_when(broken, inputs, "out/runs/det/small/aligned/1/checkpoints/step_2", whole_family=False)
    finish(broken, inputs)
    assert facts(broken) == facts(unbroken)
    logs = {arm: (broken / "out" / "runs" / "det" / "small" / arm / "1" / "log.txt").read_text() for arm in ("full", "aligned")}
    assert "resumed from" in logs["full"]
    assert "resumed from" in logs["aligned"]


def test_a_failing_arm_is_told_with_the_end_of_its_log(inputs: Path, tmp_path: Path):
    study = tmp_path / "study.yaml"
    text = TEXT.format(out=tmp_path / "out", inputs=inputs, root=ROOT)
    study.write_text(text.replace("aligned: {", "aligned: {megatron: {gradient_accumulation_fusion: true}, "))
    job = subprocess.run([sys.executable, SWEEP, str(study)], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    assert job.returncode == 2
    assert "det, base small, aligned, seed 1: failed with exit code 2" in job.stdout
    assert "gradient_accumulation_fusion" in job.stdout
    assert [
        line for line in job.stderr.splitlines() if line.startswith("error: 1 of 3 parts failed, first det, base small, aligned, seed 1")
    ]
    assert (tmp_path / "out/runs/det/small/full/1/evaluation/evaluation.json").is_file()
