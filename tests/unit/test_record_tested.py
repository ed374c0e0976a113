"""`pytest --record-tested`, in a small checkout with stand-ins for torch, transformers and megatron.core."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.patience import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "pyproject.toml": '[tool.pytest.ini_options]\ntestpaths = ["tests"]\nmarkers = ["gpu"]\n',
    "tests/test_one.py": """
import pytest
def test_a(): pass
def test_b(): pass
def test_c(): pytest.skip()
@pytest.mark.gpu
def test_d(): pass
""",
    "torch.py": "__version__ = '2.0.0+cpu'\n",
    "transformers.py": "__version__ = '5.0.0'\n",
    "megatron/core/__init__.py": "__version__ = '0.17.1'\n",
    "requirements/tested.json": "[]\n",
}


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "a")
    return tmp_path


def record(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "tests.support.record_tested", "--record-tested", *arguments]
    alone = {"PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment = {**os.environ, **alone, "PYTHONPATH": f"{checkout}:{ROOT}"}
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=PATIENCE)


def rows(checkout: Path) -> list[dict[str, object]]:
    return json.loads((checkout / "requirements" / "tested.json").read_text())


@pytest.mark.parametrize("processes", [(), ("-p", "xdist.plugin", "-n", "2")], ids=["one process", "workers"])
def test_a_whole_green_run_is_one_row(checkout: Path, processes: tuple[str, ...]) -> None:
    done = record(checkout, "-m", "not gpu", *processes)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = rows(checkout)
    assert row.pop("date")
    assert row == {
        "python": platform.python_version(),
        "megatron_core": "0.17.1",
        "torch": "2.0.0+cpu",
        "transformers": "5.0.0",
        "passed": 2,
        "skipped": 1,
        "minutes": 0,
        "commit": git(checkout, "rev-parse", "--short=7", "HEAD"),
    }


def test_a_second_run_may_follow_before_the_first_is_committed(checkout: Path) -> None:
    record(checkout)
    (checkout / "requirements" / "tested.json").write_text(json.dumps([{**rows(checkout)[0], "megatron_core": "0.16.1"}]))
    record(checkout)
    assert [row["megatron_core"] for row in rows(checkout)] == ["0.16.1", "0.17.1"]


SELECTIONS = [("-k", "test_a"), ("-m", "gpu"), ("tests/test_one.py",), ("--lf",), ("--sw",), ("--deselect", "tests/test_one.py::test_a")]


@pytest.mark.parametrize("selection", SELECTIONS, ids=" ".join)
def test_a_part_of_the_tests_is_refused(checkout: Path, selection: tuple[str, ...]) -> None:
    done = record(checkout, *selection)
    assert "--record-tested wants the whole suite, without " + selection[0] in done.stderr
    assert (done.returncode, rows(checkout)) == (4, [])


def test_changed_files_are_refused(checkout: Path) -> None:
    (checkout / "torch.py").write_text("__version__ = '3'\n")
    done = record(checkout)
    assert "these differ from it: torch.py" in done.stderr
    assert (done.returncode, rows(checkout)) == (4, [])


def test_files_outside_the_commit_are_refused(checkout: Path) -> None:
    (checkout / "tests" / "test_two.py").write_text("def test_e(): pass\n")
    done = record(checkout)
    assert "these differ from it: tests/test_two.py" in done.stderr
    assert (done.returncode, rows(checkout)) == (4, [])


BAD_RUNS = {
    "def test_a(): assert False": "Not recorded: the run ended with exit code 1",
    "import nothing_of_this_name": "Not recorded: the run ended with exit code 2",
    "import pytest\ndef test_a(): pytest.skip()": "Not recorded: no test passed",
    "def test_a(): open('torch.py', 'a').write('# changed')": "Not recorded: files changed during the run",
}


@pytest.mark.parametrize("test", BAD_RUNS)
def test_a_run_that_is_not_green_is_not_recorded(checkout: Path, test: str) -> None:
    (checkout / "tests" / "test_one.py").write_text(test + "\n")
    git(checkout, "commit", "--quiet", "--all", "--message", "b")
    done = record(checkout)
    assert BAD_RUNS[test] in done.stdout
    assert done.returncode != 0
    assert rows(checkout) == []
