"""How much a command says, and the one form of a warning. What libraries do is seen in a process of its own."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_atesd.config import load_config
from megatron_atesd.errors import ConfigError, run_command
from megatron_atesd.logs import labelled, speaking_at, take_log_level, tell, warn_here

ROOT = Path(__file__).resolve().parents[2]
COMMAND = """
import logging, sys, warnings
from megatron_atesd.errors import run_command
from megatron_atesd.logs import tell, warn_here

def main():
    tell(f"arguments {sys.argv[1:]}")
    warn_here("disk is full: make room")
    library = logging.getLogger("library.part")
    library.info("loading %s", "x")
    for _ in range(2):
        library.warning("old\\nfile")
        warnings.warn("it is deprecated", UserWarning)
        library.error("it broke")

run_command(main)
"""


def said(folder: Path, *arguments: str, rank: int = 0) -> list[str]:
    """The lines on stderr of a command with these arguments."""
    (folder / "command.py").write_text(COMMAND)
    env = os.environ | {"PYTHONPATH": str(ROOT), "RANK": str(rank)}
    done = subprocess.run([sys.executable, "command.py", *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    return done.stderr.replace(folder.name, "FOLDER").splitlines()


WARNINGS = ["warning: library.part: old", "file", "warning: it is deprecated (UserWarning, FOLDER/command.py:13)"]
ERRORS = ["error: library.part: it broke"] * 2
OURS = ["warning: disk is full: make room"]


@pytest.mark.parametrize(
    ("level", "lines"),
    [
        ("debug", ["arguments ['--a', 'b']", *OURS, "library.part: loading x", *WARNINGS, *ERRORS]),
        ("info", ["arguments ['--a', 'b']", *OURS, *WARNINGS, *ERRORS]),
        ("warning", [*OURS, *WARNINGS, *ERRORS]),
        ("error", ERRORS),
    ],
)
def test_each_level_lets_through_what_is_grave_enough(tmp_path: Path, level: str, lines: list[str]):
    assert said(tmp_path, "--a", "--log-level", level, "b") == lines


def test_other_ranks_tell_their_warnings_alone_behind_their_rank(tmp_path: Path):
    lines = said(tmp_path, "--log-level=debug", rank=3)
    assert [line for line in lines if "library" in line or "disk" in line] == [
        "rank 3: warning: disk is full: make room",
        "rank 3: warning: library.part: old",
        *[f"rank 3: {line}" for line in ERRORS],
    ]


@pytest.mark.parametrize(
    ("given", "level", "left"),
    [
        ([], "info", []),
        (["--log-level", "debug", "--run.seed", "3"], "debug", ["--run.seed", "3"]),
        (["--run.seed=3", "--log-level=error"], "error", ["--run.seed=3"]),
        (["--log-level=error", "--log-level", "warning"], "warning", []),
        (["x", "--log-level"], "", ["x"]),
        (["--log-levels=3"], "info", ["--log-levels=3"]),
    ],
)
def test_the_option_is_taken_from_the_command_line(given: list[str], level: str, left: list[str]):
    arguments = list(given)
    assert (take_log_level(arguments), arguments) == (level, left)


def test_it_is_no_setting(monkeypatch: pytest.MonkeyPatch):
    seeds: list[int] = []
    monkeypatch.setattr(sys, "argv", ["train.py", "--log-level", "error", "--run.seed", "5"])
    run_command(lambda: seeds.append(load_config().run.seed))
    assert seeds == [5]


@pytest.mark.parametrize("value", ["loud", ""])
def test_another_level_is_refused_in_one_line(value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["train.py", f"--log-level={value}"])
    with pytest.raises(SystemExit) as end:
        run_command(lambda: pytest.fail("the command began"))
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: --log-level is {value!r}, must be one of debug, info, warning, error\n"


def test_after_a_command_all_is_as_it_was(monkeypatch: pytest.MonkeyPatch):
    import warnings

    root = logging.getLogger()

    def state() -> tuple[object, ...]:
        return root.level, list(root.handlers), logging.getLogger("megatron_atesd").level, warnings.showwarning

    before = state()

    def fail() -> None:
        with speaking_at("error"):
            assert state() != before
            raise ConfigError("x")

    with pytest.raises(ConfigError, match="x"):
        fail()
    assert state() == before


class Terminal:
    """A stderr that is a terminal."""

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...


def test_a_terminal_shows_labels_in_colour_and_whole_words(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "24")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    warn_here("the disk is full: make some room")
    assert terminal.text == "\x1b[33mwarning:\x1b[0m the disk is\nfull: make some room\n"
    assert labelled("error", "x") == "\x1b[31merror:\x1b[0m x"


def test_no_color_is_heeded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert labelled("warning", "x") == "warning: x"


def test_what_is_told_is_on_stderr(capsys: pytest.CaptureFixture[str]):
    tell("reading")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "reading\n")
