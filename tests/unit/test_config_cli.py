"""What a user sees of a refusal: one line on stderr and exit code 2, from a real process."""

import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = """
from megatron_atesd.config import validate
from megatron_atesd.config import load_config
from megatron_atesd.errors import run_command

def main() -> None:
    config = load_config()
    validate(config)
    print("seed", config.run.seed)

run_command(main)
"""


@pytest.fixture
def command(tmp_path: Path):
    script = tmp_path / "command.py"
    script.write_text(COMMAND)
    (tmp_path / "problems.jsonl").write_text("")
    paths = [
        "--model.path",
        str(tmp_path),
        "--data.train",
        str(tmp_path / "problems.jsonl"),
        "--data.probe",
        str(tmp_path / "problems.jsonl"),
    ]

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        root = Path(__file__).resolve().parents[2]
        return subprocess.run(
            [sys.executable, script, *paths, *argv], cwd=root, env={"PYTHONPATH": str(root)}, capture_output=True, text=True
        )

    return run


def test_good_settings_run(command):
    result = command("--run.seed", "7")
    assert (result.returncode, result.stdout, result.stderr) == (0, "seed 7\n", "")


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--exposure.holdd", "3"], "error: unknown setting --exposure.holdd; did you mean exposure.hold?\n"),
        (["--exposure.hold", "x"], "error: exposure.hold is 'x', must be a whole number\n"),
        (["--exposure.hold", "0"], "error: exposure.hold is 0, must be 1 or more\n"),
    ],
)
def test_a_refusal_is_one_line_and_exit_code_2(command, argv: list[str], line: str):
    result = command(*argv)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", line)


def test_help_exits_with_0_even_beside_a_mistake(command):
    result = command("--help", "--exposure.holdd")
    assert (result.returncode, result.stderr) == (0, "")
    assert "--exposure.hold VALUE" in result.stdout
