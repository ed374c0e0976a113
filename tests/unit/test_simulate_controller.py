"""The command compares settings by what a controller reaches with them, and refuses before the work what it could not simulate or write."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_atesd.errors import run_command
from tools import simulate_controller

Simulate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Simulate:
    """Exit code, stdout and stderr of a short comparison with more flags."""

    def run(*flags: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["simulate_controller.py", "--updates", "4", "--seeds", "1", *flags])
        code = 0
        try:
            run_command(simulate_controller.main)
        except SystemExit as end:
            code = int(end.code or 0)
        said, refused = capsys.readouterr()
        return code, said, refused

    return run


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optima", "abc"], "--optima is 'abc', must be exposures from 0 to 1 with commas between them, for example 0.3,0.8"),
        (["--optima", "0.3,1.5"], "--optima is '0.3,1.5', must be exposures from 0 to 1 with commas between them, for example 0.3,0.8"),
        (["--seeds", "0"], "--seeds is 0, must be 1 or more"),
        (["--updates", "0"], "--updates is 0, must be 1 or more"),
        (["--training-noise", "-1"], "--training-noise is -1.0, must be 0 or more"),
        (["--probe-noise", "nan"], "--probe-noise is nan, must be 0 or more"),
        (["--momentum", "1"], "--momentum is 1.0, must be below 1"),
        (["--vary", "hold=2,0"], "--vary hold=0: exposure.hold is 0, must be 1 or more"),
        (
            ["--vary", "batch=2,1"],
            "--vary batch=1: exposure.batch is 1 with exposure.advantage batch: one decision has no spread; "
            "set exposure.batch to 2 or advantage to ema",
        ),
        (["--vary", "entropy_target_start=1"], "--vary entropy_target_start=1.0: exposure.entropy_target_start is 1.0, must be below 0"),
        (["--vary", "warmup_updates=4"], "--vary warmup_updates=4: exposure.warmup_updates is 4, must be below run.updates 4"),
        (["--out", "absent/rows.json"], "--out is absent/rows.json, but there is no folder absent; make it, or choose another file"),
        (["--out", "."], "--out is ., which is a folder; give a file to write to"),
    ],
)
def test_a_refusal_is_one_line_before_any_row(simulate: Simulate, flags: list[str], message: str):
    code, said, refused = simulate(*flags)
    assert (code, said, refused.count("\n")) == (2, "", 1)
    assert refused.startswith(f"error: {message}")


def test_a_single_decision_a_policy_update_is_fine_with_the_ema_advantage(simulate: Simulate, tmp_path: Path):
    code, _, refused = simulate("--vary", "batch=1", "--vary", "advantage=ema", "--out", str(tmp_path / "rows.json"))
    assert (code, refused) == (0, "")
    assert [row["settings"] for row in json.loads((tmp_path / "rows.json").read_text())] == [{"batch": 1, "advantage": "ema"}]


def test_settings_are_compared_by_what_the_controller_reaches_and_printed_as_written(simulate: Simulate, tmp_path: Path):
    """Exposures are drawn around 0.5 at first, and the student's progress is fastest at 0.9: only one of the two learns that."""
    _, said, _ = simulate("--updates", "60", "--optima", "0.9", "--vary", "lr=1e-9,0.1", "--out", str(tmp_path / "rows.json"))
    still, learning = rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["settings"] for row in rows] == [{"lr": 1e-9}, {"lr": 0.1}]
    assert still["at"]["0.9"]["final_alpha"] < 0.6 < 0.75 < learning["at"]["0.9"]["final_alpha"]
    assert learning["final_regret"] < still["final_regret"] / 2
    figures = [(row["regret"], row["final_regret"], row["at"]["0.9"]["final_alpha"]) for row in rows]
    assert [line.split()[:3] for line in said.splitlines()[1:]] == [[f"{figure:.2f}" for figure in row] for row in figures]
