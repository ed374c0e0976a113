"""What a command with a model and problems refuses before heavy work: called in this process, with a model that has no weights."""

import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from examples.quickstart.warm_start import describe_model
from megatron_atesd.data.problems import save_problems
from megatron_atesd.data.sources.chain import chain_splits

ROOT = Path(__file__).resolve().parents[2]


class HeavyWorkError(Exception):
    """Process groups were about to be made."""


def save_description(folder: Path) -> Path:
    """hf/ (a description without weights: what is refused must be refused before they are read) and test.jsonl in `folder`."""
    describe_model(folder / "hf")
    save_problems(chain_splits({"test": 8}, seed=1)["test"], folder / "test.jsonl")
    return folder


def refusal(
    tool: str,
    session: str,
    given: Mapping[str, object],
    flags: tuple[object, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:
    """The one line that tools/<tool> says, without `error: `, with exit code 2; HeavyWorkError when it refuses nothing.

    session: name of the function that makes process groups. given: flags that `flags` may override, beside the quickstart's settings.
    """

    def heavy_work(*_: Any, **__: Any) -> None:
        raise HeavyWorkError

    monkeypatch.setattr(session, heavy_work)
    settings = {"--config": ROOT / "examples" / "quickstart" / "atesd.yaml", "--parallel.tensor": 1}
    words = [str(word) for pair in {**given, **settings}.items() for word in pair]
    monkeypatch.setattr(sys, "argv", [tool, *words, *map(str, flags)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "tools" / tool), run_name="__main__")
    said = capsys.readouterr().err.splitlines()
    assert (end.value.code, len(said)) == (2, 1)
    return said[0].removeprefix("error: ")
