"""A training run small enough for tests: a random Qwen3 with the quickstart's tokenizer on a few chains, started as users start it."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from examples.quickstart.warm_start import describe_model
from megatron_atesd.data.problems import save_problems
from megatron_atesd.data.sources.chain import chain_splits
from tests.support.patience import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
TRAIN = str(ROOT / "tools" / "train.py")
PROBLEMS = 24  # three updates of eight are an epoch


def save_inputs(folder: Path) -> Path:
    """hf/ (random weights; four layers divide over two interleaved stages), train.jsonl and probe.jsonl in `folder`."""
    describe_model(folder / "hf")
    torch.manual_seed(0)
    shape = Qwen3Config.from_pretrained(folder / "hf", num_hidden_layers=4, layer_types=["full_attention"] * 4)
    Qwen3ForCausalLM(shape).save_pretrained(folder / "hf")
    for name, problems in chain_splits({"train": PROBLEMS, "probe": 8}, seed=1).items():
        save_problems(problems, folder / f"{name}.jsonl")
    return folder


def save_sharp_inputs(folder: Path) -> Path:
    """The same, with predictions sharp enough that every token of the prompt matters."""
    save_inputs(folder)
    model = Qwen3ForCausalLM.from_pretrained(folder / "hf")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder / "hf")
    return folder


def arguments(inputs: Path, run_dir: Path, *overrides: str) -> list[str]:
    """Arguments of tools/train.py for a run of six updates with a learned exposure; `overrides` are more of them."""
    configs = [f"--config={ROOT / 'examples' / 'quickstart' / name}" for name in ("atesd.yaml", "paper.yaml")]
    settings = {
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
        "monitor.figure_every": 0,
        "monitor.samples": 1,
        "monitor.report": "false",
    }
    return [*configs, *(f"--{name}={value}" for name, value in settings.items()), *overrides]


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


def wait_for(fact: Callable[[], bool], job: subprocess.Popen[bytes], output: Path) -> None:
    """Return as soon as `fact` holds; fails with the job's output when it ends first or takes too long."""
    deadline = time.monotonic() + PATIENCE
    while not fact():
        assert job.poll() is None, f"the job ended with {job.returncode}: {output.read_text()}"
        assert time.monotonic() < deadline, f"nothing after {PATIENCE:g} s: {output.read_text()}"
        time.sleep(0.01)


def finish(job: subprocess.Popen[bytes], output: Path) -> None:
    """Wait for the job's end, which must be a good one."""
    assert job.wait(PATIENCE) == 0, output.read_text()


def newest(run_dir: Path) -> str:
    """Name of the newest finished checkpoint, '' when there is none."""
    pointer = run_dir / "checkpoints" / "latest"
    return pointer.read_text().strip() if pointer.is_file() else ""
