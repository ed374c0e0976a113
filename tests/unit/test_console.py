"""What a command prints never ends it, whatever the encoding, and whoever listens. Each command is a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LETTERS = "α ÷ 学 🙂 \\udcff é"  # in the command's source: a lone surrogate as a file name may hold it

COMMAND = """
import sys
from rich.console import Console
from rich.table import Table
from megatron_atesd.errors import ConfigError, run_command

def main():
    print("{letters}", flush=True)
    print("{letters}", file=sys.stderr)
    table = Table("α")
    table.add_row("学")
    Console().print(table, "α")
    print("x" * 1_000_000)
    open("done", "w").close()
    if {fails}:
        raise ConfigError("α is 学")

run_command(main)
"""


def command(
    folder: Path, redirection: str, *options: str, environment: dict[str, str] | None = None, fails: bool = False
) -> subprocess.CompletedProcess[bytes]:
    """The command in `folder`, by bash, with its output redirected; its exit code is that of the command, not of the pipe's end."""
    (folder / "command.py").write_text(COMMAND.format(letters=LETTERS, fails=fails), encoding="utf-8")
    words = " ".join([sys.executable, *options, "command.py", redirection])
    env = os.environ | {"PYTHONPATH": str(ROOT)} | (environment or {})
    return subprocess.run(["bash", "-o", "pipefail", "-c", words], cwd=folder, env=env, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"PYTHONIOENCODING": "latin-1"}, "? ÷ ? ? ? é".encode("latin-1")),
        ({"PYTHONIOENCODING": "ascii"}, b"? ? ? ? ? ?"),
        ({"PYTHONIOENCODING": "ascii:strict"}, b"? ? ? ? ? ?"),
        ({"PYTHONIOENCODING": "cp1253"}, "α ? ? ? ? ?".encode("cp1253")),
        ({"PYTHONIOENCODING": "gb2312"}, "α ÷ 学 ? ? é".encode("gb2312")),
        ({"PYTHONIOENCODING": "utf-8"}, "α ÷ 学 🙂 ? é".encode()),
        ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, b"? ? ? ? ? ?"),
        ({"LC_ALL": "POSIX", "PYTHONUNBUFFERED": "1", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, b"? ? ? ? ? ?"),
    ],
    ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else "",
)
def test_letters_that_cannot_be_shown_are_replaced(tmp_path: Path, environment: dict[str, str], shown: bytes):
    done = command(tmp_path, "", environment=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == shown
    assert done.stdout.endswith(b"x" * 1_000_000 + b"\n")


@pytest.mark.parametrize("options", [[], ["-u"]])
@pytest.mark.parametrize(
    "redirection",
    [
        "| true",
        "| head -n 1",
        "2>&1 | head -c 3",
        ">&-",
        "2>&-",
        ">&- 2>&-",
        pytest.param("> /dev/full", marks=pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")),
        "2> /dev/full | true",
    ],
)
@pytest.mark.parametrize(("fails", "code"), [(False, 0), (True, 2)])
def test_a_command_that_nobody_listens_to_ends_its_work_with_its_own_exit_code(
    tmp_path: Path, redirection: str, options: list[str], fails: bool, code: int
):
    done = command(tmp_path, redirection, *options, fails=fails)
    assert (done.returncode, (tmp_path / "done").exists()) == (code, True)
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_the_line_of_a_refusal_is_shown_in_any_encoding(tmp_path: Path):
    done = command(tmp_path, "> /dev/null", environment={"PYTHONIOENCODING": "ascii"}, fails=True)
    assert done.stderr.splitlines()[-1] == b"error: \\u03b1 is \\u5b66"
