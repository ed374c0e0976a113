"""Versions of megatron.core beside each other: the installed one and those that the environment names, each in a process of its own.

ATESD_OTHER_MEGATRON: folders that pip filled with `--no-deps --target FOLDER megatron-core==…`, separated as in PATH. Each comes before
the environment's own megatron-core. ATESD_OTHER_PYTHON: another interpreter, for these folders, or without any for its own megatron-core.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.version import Version as Number

ROOT = Path(__file__).resolve().parents[2]
_NAME = "import importlib.metadata as m, platform as p; print(m.version('megatron-core'), 'on', p.python_version())"


@dataclass(frozen=True)
class Version:
    """name: of megatron.core and of Python. folder: '' for the megatron-core of `python` itself."""

    name: str
    python: str
    folder: str

    def __str__(self) -> str:
        return self.name

    def has_no_common_file(self) -> bool:
        """Whether its own dist_checkpointing.save puts the plain values into an object alone."""
        return Number(self.name.split()[0]) >= Number("0.19")


def _version(python: str, folder: str) -> Version:
    asked = subprocess.run([python, "-c", _NAME], env=_environment(folder), stdout=subprocess.PIPE, text=True, check=True)
    return Version(asked.stdout.strip(), python, folder)


def _environment(folder: str) -> dict[str, str]:
    paths = (folder, str(ROOT), os.environ.get("PYTHONPATH", ""))
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _others() -> list[Version]:
    python = os.environ.get("ATESD_OTHER_PYTHON", "")
    folders = [str(Path(folder).resolve()) for folder in os.environ.get("ATESD_OTHER_MEGATRON", "").split(os.pathsep) if folder]
    return [_version(python or sys.executable, folder) for folder in folders or ([""] if python else [])]


OTHERS = _others()
ALL = [_version(sys.executable, ""), *OTHERS] if OTHERS else []
PAIRS = [pair for other in OTHERS for pair in ((ALL[0], other), (other, ALL[0]))]
MARKS = [pytest.mark.slow, pytest.mark.skipif(not OTHERS, reason="needs other versions of megatron-core: make test-versions")]


class Worker:
    """A process with `version`."""

    def __init__(self, version: Version) -> None:
        command, environment = [version.python, "-m", "tests.support.version_worker"], _environment(version.folder)
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True)

    def error_of(self, function: Callable[..., None], *paths: Path) -> str:
        """'' once the function, which can be imported there, has ended well, else the traceback of what it raised."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        call = function.__module__, function.__name__, [str(path) for path in paths]
        print(json.dumps(call), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


class Lab:
    """A worker of each version, and the folders that they have filled; nothing is done twice.

    inputs: a folder that all start from.
    """

    def __init__(self, inputs: Path, folder: Path) -> None:
        self.inputs, self._folder = inputs, folder
        self._workers: dict[Version, Worker] = {}
        self._errors: dict[Path, str] = {}

    def of(self, version: Version, work: Callable[..., None], *given: Path) -> Path:
        """The folder that `work(inputs, *given, folder)` has filled in the process of `version`."""
        folder = self._folder / ", ".join([f"{version} {work.__name__}", *(path.name for path in given)])
        if folder not in self._errors:
            folder.mkdir()
            if version not in self._workers:
                self._workers[version] = Worker(version)
            self._errors[folder] = self._workers[version].error_of(work, self.inputs, *given, folder)
        assert not self._errors[folder], f"{folder.name}: {self._errors[folder]}"
        return folder

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()
