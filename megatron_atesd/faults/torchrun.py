"""A torchrun job on this machine that can be watched and killed, as its scheduler, the kernel or a power cut would."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "tools" / "train.py"


def torchrun(
    processes: int, script_and_arguments: Sequence[str], output: Path, *options: str
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """A job of torchrun on this machine; `options` are torchrun's own. See `started`."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *options]
    return started([*launcher, *script_and_arguments], output)


@contextmanager
def started(command: Sequence[str], output: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command whose output is added to the file `output`; on leaving, whatever is left of it is killed."""
    inherited = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable}  # the last for launch.sh
    with output.open("ab") as file:
        job = subprocess.Popen(command, cwd=ROOT, env=inherited | environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield job
    finally:
        kill(job)


def family(job: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The launcher and every process below it."""
    with suppress(psutil.NoSuchProcess):
        launcher = psutil.Process(job.pid)
        return [launcher, *launcher.children(recursive=True)]
    return []


def ranks(job: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The training processes of a job."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(job.pid).children()
    return []


def kill(job: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the launcher and every process below it, as when the machine goes away."""
    everyone = family(job)
    # Stopped first: a launcher that outlives its ranks for a moment would react to their end.
    for signal_number in (signal.SIGSTOP, signal.SIGKILL):
        for process in everyone:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal_number)
    job.wait()
    psutil.wait_procs(everyone, timeout=10)
