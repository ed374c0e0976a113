"""The fault harness from its command to its report, on few kills."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.small_run import ENVIRONMENT, ROOT, arguments, save_inputs

pytestmark = pytest.mark.slow


def test_killed_runs_end_as_the_unbroken_one_and_lose_no_checkpoint(tmp_path: Path) -> None:
    settings = [a for a in arguments(save_inputs(tmp_path), tmp_path) if not a.startswith(("--run.dir", "--checkpoint.keep"))]
    options = ["--out", str(tmp_path / "out"), "--kills", "2", "--kills-in-save", "1", "--kills-a-run", "2"]
    small = ["--run.updates=3", "--checkpoint.every=1", "--monitor.tensorboard=false"]
    command = [sys.executable, str(ROOT / "tools" / "chaos.py"), *options, *settings, *small]
    ended = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    report = json.loads((tmp_path / "out" / "chaos.json").read_text())
    assert (report["updates"], report["lost"], report["different"]) == (3, [], [])
    assert report["kills"] >= 2
    assert report["kills_in_save"] >= 1
