"""The fault harness from its command to its report, on few kills."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_atesd.faults.chaos import run_differences
from megatron_atesd.faults.state import checkpoint_state
from tests.support.small_run import ENVIRONMENT, ROOT, arguments, save_inputs

pytestmark = pytest.mark.slow


UPDATES = 3


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command left: an unbroken run, broken ones, and its report."""
    folder = tmp_path_factory.mktemp("chaos")
    settings = [a for a in arguments(save_inputs(folder), folder) if not a.startswith(("--run.dir", "--checkpoint.keep"))]
    options = ["--out", str(folder / "out"), "--kills", "2", "--kills-in-save", "1", "--kills-a-run", "2"]
    small = [f"--run.updates={UPDATES}", "--checkpoint.every=1", "--monitor.tensorboard=false"]
    command = [sys.executable, str(ROOT / "tools" / "chaos.py"), *options, *settings, *small]
    ended = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return folder / "out"


def test_killed_runs_end_as_the_unbroken_one_and_lose_no_checkpoint(out: Path) -> None:
    report = json.loads((out / "chaos.json").read_text())
    assert (report["updates"], report["lost"], report["different"]) == (UPDATES, [], [])
    assert report["kills"] >= 2
    assert report["kills_in_save"] >= 1


def test_a_run_that_ended_in_other_weights_or_metrics_would_have_been_seen(out: Path, tmp_path: Path) -> None:
    """Here it ends in the weights of an update before."""
    other, last = Path(shutil.copytree(out / "unbroken", tmp_path / "other")), f"step_{UPDATES}"
    shutil.rmtree(other / "checkpoints" / last)
    (other / "checkpoints" / f"step_{UPDATES - 1}").rename(other / "checkpoints" / last)
    weights = {name for name in checkpoint_state(out / "unbroken" / "checkpoints" / last) if name.startswith("/tensors/model.")}
    assert run_differences(out / "unbroken", out / "unbroken") == []
    assert weights & set(run_differences(other, out / "unbroken"))
    text = (other / "metrics.jsonl").read_text()
    (other / "metrics.jsonl").write_text(text.replace('"update": 1', '"optim/lr": 0.5, "update": 1'))
    assert "metrics.jsonl" in run_differences(other, out / "unbroken")
