"""The command compares settings by what a controller reaches with them, and refuses before the work what it could not simulate or write."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_atesd.errors import run_command
from megatron_atesd.exposure.simulated_student import StudentModel
from tools import simulate_controller

Simulate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Simulate:
    """Exit code, stdout and stderr of the command with these flags."""

    def run(*flags: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["simulate_controller.py", *flags])
        code = 0
        try:
            run_command(simulate_controller.main)
        except SystemExit as end:
            code = int(end.code or 0)
        said, refused = capsys.readouterr()
        return code, said, refused

    return run


@pytest.fixture
def simulate(command: Simulate) -> Simulate:
    """A short comparison of settings, with more flags."""
    return lambda *flags: command("--updates", "4", "--seeds", "1", *flags)


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
        (["--lasting", "1.5"], "--lasting is 1.5, must be at most 1"),
        (["--rho", "1.5"], "--rho is '1.5', must be correlations from 0 to 1 with commas between them, for example 0.3,0.6"),
        (["--rho", "0.3,0.6"], "--rho is 0.3,0.6, but only --study compares several; give one"),
        (["--optima", "0.9/x"], "--optima is '0.9/x', must be exposures from 0 to 1 with commas between them, for example 0.3,0.8"),
        (
            ["--vary", "mode=posterior", "--vary", "bins=2", "--optima", "0.9/0.2,0.5"],
            "--vary exposure.bins is 2, but student 0.5 has 1: give one optimum a bin, such as 0.9/0.2",
        ),
        (["--jobs", "2"], "--jobs is not for use without --study; leave one of the two out"),
        (["--study"], "--updates is not for use with --study; leave one of the two out"),
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


def test_bins_have_an_exposure_each_or_one_for_all(simulate: Simulate, tmp_path: Path):
    flags = ["--vary", "mode=target_kl", "--vary", "bins=1,2", "--optima", "0.9/0.2", "--out", str(tmp_path / "rows.json")]
    code, said, refused = simulate(*flags)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert (code, refused, [row["settings"]["bins"] for row in rows]) == (0, "", [1, 2])
    assert said.splitlines()[0] == "regret  final  α@0.9/0.2  settings"
    both = [StudentModel(optimum=0.9), StudentModel(optimum=0.2)]  # a window of 2 updates at 0, one at 0.1 - 0.1 · 0.003 / 0.05
    expected = [sum(student.regret(alpha) for student in both) / 2 for alpha in (0.0, 0.094)]
    assert [row["regret"] for row in rows] == pytest.approx([sum(expected) / 2] * 2)


def test_a_flat_student_has_no_regret_to_print(simulate: Simulate):
    _, said, _ = simulate("--best", "5e-4", "--worst", "5e-4", "--vary", "mode=fixed", "--optima", "0.5")
    assert said.splitlines()[1].split() == ["–", "–", "1.00", "mode=fixed"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--decisions", "50,25"],
            "--decisions is '50,25', must be rising numbers of 1 or more with commas between them, for example 25,50",
        ),
        (["--decisions", "0,5"], "--decisions is '0,5', must be rising numbers of 1 or more"),
        (["--decisions", "5,x"], "--decisions is '5,x', must be rising numbers of 1 or more"),
        (["--decisions", "1", "--hold", "1"], "exposure.levels has 2 stages, but run.updates is 1; give fewer"),
        (["--hold", "0"], "--hold is 0, must be 1 or more"),
        (["--jobs", "0"], "--jobs is 0, must be 1 or more"),
        (["--seeds", "0"], "--seeds is 0, must be 1 or more"),
        (["--rho", "x"], "--rho is 'x', must be correlations from 0 to 1"),
        (["--vary", "hold=1,2"], "--vary is not for use with --study; leave one of the two out"),
        (["--picture", "study.txt"], "--picture study.txt: the name must end in one of .png, .svg, .pdf"),
        (
            ["--picture", "absent/study.png"],
            "--picture is absent/study.png, but there is no folder absent; make it, or choose another file",
        ),
        (["--out", "."], "--out is ., which is a folder; give a file to write to"),
    ],
)
def test_a_study_that_cannot_be_done_is_refused_in_one_line(command: Simulate, flags: list[str], message: str):
    code, said, refused = command("--study", *flags)
    assert (code, said, refused.count("\n")) == (2, "", 1)
    assert refused.startswith(f"error: {message}")


def test_a_study_prints_tables_and_writes_rows_and_a_picture(command: Simulate, tmp_path: Path):
    out, picture = tmp_path / "study.json", tmp_path / "study.png"
    flags = ["--decisions", "2,3", "--hold", "2", "--seeds", "2", "--rho", "0.5", "--out", str(out), "--picture", str(picture)]
    code, said, told = command("--study", *flags)
    found = json.loads(out.read_text())
    assert (code, found["seeds"], found["hold"]) == (0, 2, 2)
    assert "100% of the work" in told
    assert [line.split("**")[1] for line in said.splitlines() if line.startswith("**")] == list(found["students"])
    assert list(found["modes"])[-2:] == ["posterior", "aligned-0.5"]
    assert {(row["decisions"], row["updates"]) for row in found["rows"]} == {(2, 4), (3, 6)}
    assert found["modes"]["posterior"] == {"settings": {"mode": "posterior"}, "rho": None}  # hold is 2 by default
    assert picture.read_bytes().startswith(b"\x89PNG")
