"""A training run small enough for tests: a random Qwen3 with the quickstart's tokenizer on a few chains, started as users start it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from transformers import Qwen3Config, Qwen3ForCausalLM

from examples.quickstart.warm_start import describe_model
from megatron_atesd.data.problems import save_problems
from megatron_atesd.data.sources.chain import chain_splits

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
TRAIN = str(ROOT / "tools" / "train.py")
TIMEOUT_SECONDS = 120.0


def save_inputs(folder: Path) -> Path:
    """hf/ (random weights; four layers divide over two interleaved stages), train.jsonl and probe.jsonl in `folder`."""
    describe_model(folder / "hf")
    torch.manual_seed(0)
    shape = Qwen3Config.from_pretrained(folder / "hf", num_hidden_layers=4, layer_types=["full_attention"] * 4)
    Qwen3ForCausalLM(shape).save_pretrained(folder / "hf")
    for name, problems in chain_splits({"train": 64, "probe": 8}, seed=1).items():
        save_problems(problems, folder / f"{name}.jsonl")
    return folder


def arguments(inputs: Path, run_dir: Path, *overrides: str) -> list[str]:
    """Arguments of tools/train.py for a run of six updates; `overrides` are more of them."""
    settings = {
        "config": ROOT / "examples" / "quickstart" / "atesd.yaml",
        "run.dir": run_dir,
        "run.updates": 6,
        "model.path": inputs / "hf",
        "data.train": inputs / "train.jsonl",
        "data.probe": inputs / "probe.jsonl",
        "data.batch": 8,
        "parallel.micro_batch_tokens": 128,
        "rollout.max_new_tokens": 16,
        "distill.teacher": "ema",
        "distill.ema_decay": 0.9,
        "exposure.hold": 1,
        "exposure.lookahead": 2,
        "exposure.batch": 1,
        "checkpoint.every": 2,
        "checkpoint.keep": 0,
        "monitor.figure_every": 3,
        "monitor.samples": 1,
    }
    return [*(f"--{name}={value}" for name, value in settings.items()), *overrides]


def recipe_overrides(inputs: Path, run_dir: Path, *overrides: str) -> list[str]:
    """What makes the recipes of Qwen3-8B small enough: their method, SP and bf16 stay; `overrides` are more of them."""
    settings = {
        "run.dir": run_dir,
        "model.path": inputs / "hf",
        "data.train": inputs / "train.jsonl",
        "data.probe": inputs / "probe.jsonl",
        "data.batch": 4,
        "parallel.tensor": 2,
        "rollout.max_new_tokens": 8,
        # The tiny tokenizer knows these words only.
        "prompt.teacher_thinking": "false",
        "prompt.instruction": "",
        "prompt.reference_intro": "reference",
        "prompt.answer_intro": "answer",
        "prompt.transition": "solve",
        "prompt.max_length": 80,
    }
    return [*(f"--{name}={value}" for name, value in settings.items()), *overrides]


def torchrun(processes: int, script_and_arguments: Sequence[str], output: Path) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """A job of torchrun whose output goes to the file `output`; on leaving, whatever is left of it is killed."""
    torch_run = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return started([*torch_run, *script_and_arguments], output)


@contextmanager
def started(command: Sequence[str], output: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command whose output goes to the file `output`; on leaving, whatever is left of it is killed."""
    with output.open("wb") as file:
        job = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT | environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield job
    finally:
        kill(job)


def kill(job: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the launcher and every process below it, as when the machine goes away."""
    everyone = family(job)
    for process in everyone:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    job.wait()
    psutil.wait_procs(everyone, timeout=10)


def family(job: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The launcher and every process below it."""
    with suppress(psutil.NoSuchProcess):
        launcher = psutil.Process(job.pid)
        return [launcher, *launcher.children(recursive=True)]
    return []


def ranks(job: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The training processes of a job."""
    return psutil.Process(job.pid).children()


def wait_for(fact: Callable[[], bool], job: subprocess.Popen[bytes], output: Path) -> None:
    """Return as soon as `fact` holds; fails with the job's output when it ends first or takes too long."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not fact():
        assert job.poll() is None, f"the job ended with {job.returncode}: {output.read_text()}"
        assert time.monotonic() < deadline, f"nothing after {TIMEOUT_SECONDS:g} s: {output.read_text()}"
        time.sleep(0.01)


def finish(job: subprocess.Popen[bytes], output: Path) -> None:
    """Wait for the job's end, which must be a good one."""
    assert job.wait(TIMEOUT_SECONDS) == 0, output.read_text()


def newest(run_dir: Path) -> str:
    """Name of the newest finished checkpoint, '' when there is none."""
    pointer = run_dir / "checkpoints" / "latest"
    return pointer.read_text().strip() if pointer.is_file() else ""


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def reproducible(line: dict[str, Any]) -> dict[str, Any]:
    """An update's metrics without those that depend on the machine's mood."""
    return {name: value for name, value in line.items() if name.split("/")[0] not in ("time", "perf", "memory")}


def checkpoint_state(folder: Path, scratch: Path) -> dict[str, Any]:
    """Every tensor and plain value of a checkpoint under its path, undivided; the run directory's own name aside."""
    dcp_to_torch_save(folder / "weights", scratch)
    tensors = torch.load(scratch, weights_only=True)
    plain = torch.load(folder / "weights" / "common.pt", weights_only=True)
    plain["run"]["config"]["run"].pop("dir")
    return dict(_leaves({"tensors": tensors, "plain": plain}, ""))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        yield path, value
    for name, part in items or ():
        yield from _leaves(part, f"{path}/{name}")
