"""One process for each measurement, so that its memory is its own."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol

from benchmarks.measurement import Measurement
from megatron_atesd.errors import AtesdError

_TRL_STEP = Path(__file__).parent / "trl_step.py"
_ROOT = Path(__file__).resolve().parents[2]


class MeasurementError(AtesdError):
    """A measuring process ended without a result."""


def trl_is_there(python: str, say: Callable[[str], None], lora: bool = False) -> bool:
    """Whether `python` can import trl's self-distillation trainer, and with `lora` peft; says why not."""
    if not python:
        say("trl left out: give --trl-python PATH, an interpreter with trl, transformers, datasets and accelerate")
        return False
    try:
        imports = "import trl, trl.experimental.sdft, datasets" + (", peft" if lora else "")
        found = subprocess.run([python, "-I", "-c", imports], capture_output=True, text=True)
    except OSError as error:
        say(f"trl left out: {python} cannot be run ({error.strerror})")
        return False
    if found.returncode:
        say(f"trl left out: {python}: {_last_line(found.stderr)}")
    return found.returncode == 0


def measured(task: Measurement, trl_python: str = "") -> dict[str, Any]:
    """The result of one measurement in a process of its own. Raises MeasurementError with the last line it wrote when it fails."""
    worker = [trl_python, "-I", str(_TRL_STEP)] if task.contender.startswith("trl") else [sys.executable, "-m", "benchmarks.worker"]
    return result_of(worker, task)


class Task(Protocol):
    """What a measuring process is asked for."""

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def threads(self) -> int: ...
    def save(self, path: Path) -> None: ...


def result_of(worker: Sequence[str], task: Task, gpus: int = 1) -> dict[str, Any]:
    """What `worker TASK.json RESULT.json` writes; it sees `gpus` GPUs. Raises MeasurementError as `measured` does."""
    with tempfile.TemporaryDirectory() as folder:
        given, result = Path(folder) / "task.json", Path(folder) / "result.json"
        task.save(given)
        found = subprocess.run([*worker, str(given), str(result)], capture_output=True, text=True, env=_environment(task, gpus))
        if found.returncode:
            raise MeasurementError(f"{task.name}: the measuring process ended with code {found.returncode}: {_last_line(found.stderr)}")
        return json.loads(result.read_text(encoding="utf-8"))


def _environment(task: Task, gpus: int) -> dict[str, str]:
    threads = str(task.threads)
    fixed = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
    fixed |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    fixed["CUDA_VISIBLE_DEVICES"] = ",".join(devices[:gpus]) if task.device == "cuda" else ""  # no contender shares its work out unasked
    path = os.pathsep.join([str(_ROOT), str(_ROOT / "tools"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | fixed | {"PYTHONPATH": path}


def _last_line(text: str) -> str:
    """The last of what the worker wrote; after it torchrun, where there is one, writes about its own work."""
    own = takewhile(lambda line: "distributed/elastic" not in line, text.splitlines())
    lines = [line for line in own if line.strip()]
    return lines[-1].strip() if lines else "it wrote nothing"
