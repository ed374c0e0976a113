"""The bias check as users ask for it: in a run, and by tools/check_progress.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_atesd.config import load_config
from megatron_atesd.train.loop import train
from tests.support.patience import PATIENCE
from tests.support.small_run import ENVIRONMENT, ROOT, arguments, save_inputs

TOOL = str(ROOT / "tools" / "check_progress.py")
SMALL = ("--exposure.probe_samples=1", "--run.updates=2", "--data.probe_size=2", "--monitor.tensorboard=false")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inputs(tmp_path_factory.mktemp("inputs"))


def test_a_run_checks_once_before_its_first_update(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = []
    for name, updates in (("with", 1), ("without", 0)):
        given = ("--parallel.tensor=1", f"--exposure.bias_check={updates}", *SMALL)
        train(load_config(arguments(inputs, tmp_path / name, *given)))
        metrics = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        lines.append([{k: v for k, v in line.items() if not k.startswith(("time/", "perf/", "memory/"))} for line in metrics])
        if updates:
            printed = capsys.readouterr().out
            assert printed.index("bias check: change after 1 update ") < printed.index("update 1/2")
            assert json.loads((tmp_path / name / "bias_check.json").read_text())["verdict"] in printed
            train(load_config(arguments(inputs, tmp_path / name, *given)))  # nothing is left to do
            assert "bias check" not in capsys.readouterr().out
    assert lines[0] == lines[1]  # a check changes no number of the run


def tool(inputs: Path, run_dir: Path, *given: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, TOOL, *arguments(inputs, run_dir, "--parallel.tensor=1", *SMALL, *given)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_the_tool_says_its_sentence_and_leaves_nothing(inputs: Path, tmp_path: Path) -> None:
    done = tool(inputs, tmp_path / "run", "--updates=1", "--lead=1", "--alphas=0,1", f"--out={tmp_path / 'bias.json'}")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "bias.json").read_text())
    assert record["verdict"] == done.stdout.splitlines()[-1]
    assert [row["alpha"] for row in record["changes"]] == [0.0, 1.0]
    assert [path.name for path in tmp_path.iterdir()] == ["bias.json"]


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        (("--updates=0",), "error: --updates is 0, must be 1 or more\n"),
        (("--updates=1", "--out=/nowhere/bias.json"), "error: --out is /nowhere/bias.json, must be a file in a folder that exists\n"),
        (("--updates=1", "--exposure.mode=none"), "exposure.mode none has none"),
        (("--updates=1", "--lead=2"), "error: --lead 2 and --updates 1 are more than run.updates 2; raise run.updates\n"),
        (("--updates=1", "--lead=-1"), "error: --lead is -1, must be 0 or more\n"),
        (("--updates=1", "--lead-alpha=1.5"), "error: --lead-alpha is 1.5, must be from 0 to 1\n"),
        (("--updates=1", "--alphas=0,2"), "error: --alphas is '0,2', must be two or more numbers from 0 to 1, each above the one before"),
    ],
)
def test_the_tool_refuses_what_cannot_be(given: tuple[str, ...], rule: str, inputs: Path, tmp_path: Path) -> None:
    done = tool(inputs, tmp_path / "run", *given)
    assert done.returncode == 2
    assert rule in done.stderr
    assert done.stderr.count("\n") == 1
