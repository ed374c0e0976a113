"""Where the steps of a study run: forks of one process that has everything imported, or whatever a launcher starts."""

import multiprocessing
import os
import runpy
import shlex
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from megatron_atesd.errors import ConfigError
from megatron_atesd.study.work import Step

# Threads of one process only get in the way of others beside it. NVML tells whether there is a GPU without opening it, as a fork needs.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
_IMPORTED = ["megatron_atesd.train.loop", "megatron_atesd.evaluate.evaluation"]


class Job(Protocol):
    """A process that was started."""

    def code(self) -> int | None:
        """Its exit code, None while it runs."""
        ...

    def stop(self) -> None:
        """Ask it to end."""
        ...


class Forks:
    """Scripts of this project, each in a fork of a server that has torch, megatron.core and this project imported.

    That saves the imports, seconds a step. The forks end when this process does, however it ends.
    """

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_IMPORTED)

    def start(self, step: Step, log: Path) -> Job:
        if step.plain:
            return Launched(step.words, log)
        return _Fork(self._context, step.words, log)


class _Fork:
    def __init__(self, context: Any, words: Sequence[str], log: Path) -> None:
        self._process = context.Process(target=_run_script, args=(list(words), str(log)))
        self._process.start()

    def code(self) -> int | None:
        return self._process.exitcode

    def stop(self) -> None:
        self._process.terminate()


def _run_script(words: list[str], log: str) -> None:
    """The script, as if Python had been started with it; its output is added to the file `log`."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    output = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.argv, sys.path[0] = words, str(Path(words[0]).parent)
    runpy.run_path(words[0], run_name="__main__")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "forked by the server for the study's process"
    parent.join()
    os._exit(1)


class Launcher:
    """Scripts of this project behind a launcher's words, such as `srun --ntasks 8 {python}`. Raises ConfigError where there are none."""

    def __init__(self, template: str) -> None:
        try:
            self._words = shlex.split(template)
        except ValueError as error:
            raise ConfigError(f"--launch is {template!r}, which cannot be split into words ({error}); correct its quotes") from None
        if not self._words:
            raise ConfigError("--launch is empty; give words to put before a script's path, such as '{python}'")

    def command(self, step: Step, log: Path) -> list[str]:
        """The words that start a step; {python} and {run} of the template are filled in. log: of its part, in the part's own folder."""
        words = [] if step.plain else self._words
        name = "-".join(log.parent.parts[-4:])  # task, base, arm and seed, or as much of another part's folder
        return [word.replace("{python}", sys.executable).replace("{run}", name) for word in words] + step.words

    def start(self, step: Step, log: Path) -> Job:
        return Launched(self.command(step, log), log)


def torchrun(processes: int) -> str:
    """The launcher of several processes on this machine."""
    return f"{{python}} -m torch.distributed.run --standalone --nproc-per-node {processes}"


class Launched:
    """A command whose output is added to the file `log`. Raises ConfigError when it cannot be started."""

    def __init__(self, words: Sequence[str], log: Path) -> None:
        try:
            with log.open("ab") as file:
                # Descriptors are left open: the study's lock is held until the last of its processes has ended.
                self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, close_fds=False)
        except OSError as error:
            raise ConfigError(f"{words[0]} cannot be started ({error.strerror}): {shlex.join(words)[:200]}") from None

    def code(self) -> int | None:
        return self._process.poll()

    def stop(self) -> None:
        self._process.terminate()
