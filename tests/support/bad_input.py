"""Run a command in this process on bad input, and hold it to what every refusal must be."""

import hashlib
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.convert_models import end_process_groups

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {
    "hf_to_megatron": ROOT / "checkpoints_convert" / "hf_to_megatron.py",
    "megatron_to_hf": ROOT / "checkpoints_convert" / "megatron_to_hf.py",
    **{name: ROOT / "tools" / f"{name}.py" for name in ("train", "evaluate", "prepare_data")},
}


def refusal(command: str, arguments: Sequence[object], around: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What `command` says, without `error: `, once it has ended with exit code 2 and exactly one such line, and no traceback.

    Nothing in the folder `around` may have been added, removed or changed.
    """
    before = contents(around)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [command, *map(str, arguments)])
        try:
            with pytest.raises(SystemExit) as end:
                runpy.run_path(str(SCRIPTS[command]), run_name="__main__")
        finally:
            end_process_groups()
    stderr = capsys.readouterr().err
    said = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert (end.value.code, len(said)) == (2, 1), stderr
    assert "Traceback" not in stderr
    assert contents(around) == before
    return said[0].removeprefix("error: ")


def contents(folder: Path) -> dict[str, str]:
    """Every file, folder and link below `folder`, with what it holds."""
    found: dict[str, str] = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            if path.is_symlink():
                found[str(path)] = f"link to {path.readlink()}"
            else:
                found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found
