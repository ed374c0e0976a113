"""A study that is killed at any time ends, by the same command, as one that was left alone."""

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from megatron_atesd.faults.torchrun import kill
from megatron_atesd.study.processes import Launcher
from megatron_atesd.study.work import Step
from tests.support.fake_study import ROOT, SWEEP, command, save_study
from tests.support.patience import PATIENCE
from tests.support.small_run import ENVIRONMENT

RUNS = 24


def start(study: Path, *options: str) -> subprocess.Popen[bytes]:
    with (study.parent / "said.txt").open("ab") as file:
        return subprocess.Popen(command(study, *options), cwd=ROOT, env=ENVIRONMENT, stdout=file, stderr=subprocess.STDOUT)


def run_whole(study: Path, *options: str) -> str:
    """What the command says."""
    job = subprocess.run(command(study, *options), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    assert job.returncode == 0, job.stdout + job.stderr
    return job.stdout


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = save_study(tmp_path_factory.mktemp("unbroken"))
    run_whole(study)
    return study


def evaluated(study: Path) -> int:
    return len(list((study.parent / "out" / "runs").rglob("evaluation.json")))


def results(study: Path) -> tuple[str, str]:
    out = study.parent / "out"
    texts = [(out / name).read_text().replace(str(out), "OUT") for name in ("results.json", "tables.md")]
    return texts[0], texts[1]


def refused(words: list[str], said: str) -> None:
    """In one line, with exit code 2."""
    job = subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    assert (job.returncode, job.stderr.count("\n")) == (2, 1), job.stderr
    assert said in job.stderr


def test_killed_ten_times_it_ends_with_the_same_table(unbroken: Path, tmp_path: Path):
    study, draw, kills, done = save_study(tmp_path), random.Random(1), 0, 0
    while kills < 10:
        job = start(study)
        began = time.monotonic()
        moment = draw.uniform(0.3, 1.3)
        while job.poll() is None and time.monotonic() - began < moment:
            time.sleep(0.01)
        if job.poll() is not None:  # on a fast machine all is done before the last kill
            assert job.returncode == 0
            break
        kill(job)
        kills += 1
        assert done <= (done := evaluated(study)), "a finished run was removed"
    assert kills > 2
    run_whole(study)
    assert evaluated(study) == RUNS
    logs = [path.read_text() for path in (tmp_path / "out" / "runs").rglob("log.txt")]
    assert max(log.count("evaluated") for log in logs) == 1, "a finished run was done again"
    for path in (tmp_path / "out").rglob("*.partial"):
        pytest.fail(f"{path} was left behind")
    assert results(study) == results(unbroken)


def test_a_finished_study_is_only_read(unbroken: Path):
    runs = unbroken.parent / "out" / "runs"
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    said = run_whole(unbroken)
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before
    assert "left" not in said  # nothing was done, so there is no time left to tell


def test_what_a_killed_study_leaves_running_keeps_another_from_starting(tmp_path: Path):
    study = save_study(tmp_path)
    job = start(study)
    while not (children := psutil.Process(job.pid).children()):
        assert job.poll() is None
    children[0].suspend()
    job.kill()
    job.wait()
    try:
        again = subprocess.run(command(study), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    finally:
        children[0].kill()
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert f"error: out is {tmp_path}/out, where another study is at work, or a process that one left behind" in again.stderr


def test_an_arm_that_was_changed_is_refused_and_stays(unbroken: Path, tmp_path: Path):
    changed = tmp_path / "study.yaml"
    changed.write_text(unbroken.read_text().replace("mode: fixed, fixed: 0.5", "mode: fixed, fixed: 0.75"))
    before = results(unbroken)
    again = subprocess.run(command(changed), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "runs/late/7/half/1 (and 7 more runs) has a run with other settings: exposure.fixed is 0.75, there 0.5" in again.stderr
    assert results(unbroken) == before


@pytest.mark.parametrize("option", [["--collect"], ["--only", "full"]], ids=["collect", "only"])
def test_tables_never_show_a_changed_arm_under_its_new_settings(option: list[str], unbroken: Path, tmp_path: Path):
    changed = tmp_path / "study.yaml"
    changed.write_text(unbroken.read_text().replace("mode: fixed, fixed: 0.5", "mode: fixed, fixed: 0.75"))
    refused(command(changed, *option), "has a run with other settings: exposure.fixed is 0.75, there 0.5")


def test_the_evaluation_of_a_base_with_other_sampling_is_refused(unbroken: Path, tmp_path: Path):
    study = tmp_path / "study.yaml"
    shutil.copytree(unbroken.parent / "out", tmp_path / "out")
    for name in ("runs", "signals"):
        shutil.rmtree(tmp_path / "out" / name)
    text = unbroken.read_text().replace(f"out: {unbroken.parent}", f"out: {tmp_path}")
    study.write_text(text.replace("samples: 4", "samples: 8"))
    refused(
        command(study), "before/late/7 (and 3 more evaluations) has an evaluation with other settings: evaluation.samples is 8, there 4"
    )


def test_what_cannot_be_used_is_refused_before_the_work(tmp_path: Path):
    study = save_study(tmp_path)
    refused(command(study, "--collect"), f"--collect: out is {tmp_path}/out, which is no folder: nothing has been done yet")
    refused([sys.executable, SWEEP, str(study), "--launch", "srun '"], '--launch is "srun \'", which cannot be split into words')
    refused(command(study, "--readme", str(tmp_path / "none.md")), f"--readme {tmp_path}/none.md cannot be used")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["lock"]


def test_bases_that_are_the_same_model_are_refused(tmp_path: Path):
    study = save_study(tmp_path)
    same = tmp_path / "same"
    same.mkdir()
    (same / "SHA256SUMS").write_text("the same\n")
    make = next(line for line in study.read_text().splitlines() if line.startswith("bases:"))
    text = f'bases: {{names: [7, 8], make: ["cp {same}/SHA256SUMS {{folder}}"], model: "{{folder}}"}}'
    study.write_text(study.read_text().replace(make, text))
    refused(command(study), f"bases 7 and 8 are the same model ({tmp_path}/out/bases/8), and would pass for two observations")


def test_another_evaluation_update_is_refused(unbroken: Path, tmp_path: Path):
    changed = tmp_path / "study.yaml"
    changed.write_text(unbroken.read_text().replace("samples: 4", "samples: 8"))
    again = subprocess.run(command(changed), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    assert again.returncode == 2
    assert "(and 23 more runs) has a run with other settings: evaluation.samples is 8, there 4" in again.stderr


def test_a_check_that_was_changed_is_refused(unbroken: Path, tmp_path: Path):
    changed = tmp_path / "study.yaml"
    changed.write_text(unbroken.read_text().replace("signals: {updates: 2", "signals: {updates: 1"))
    again = subprocess.run(command(changed), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    assert again.returncode == 2
    assert (
        "signals/late/7/0 (and 7 more checks) has a check with other settings: signals.updates is 1, there 2; set it back, or"
        in again.stderr
    )


def test_checks_after_other_updates_may_be_added_and_left_out(unbroken: Path, tmp_path: Path):
    fewer = tmp_path / "study.yaml"
    fewer.write_text(unbroken.read_text().replace("leads: [0, 1]", "leads: [1]"))
    assert "late, updates 2 to 3 |" in (run_whole(fewer) and (unbroken.parent / "out" / "tables.md").read_text())
    run_whole(unbroken)


def test_what_is_printed_are_commands_and_nothing_else(tmp_path: Path):
    lines = run_whole(save_study(tmp_path), "--print").splitlines()
    assert len(lines) == RUNS + 4 + 8  # runs, evaluations of bases, checks
    assert {line.split()[0] for line in lines} == {sys.executable}


def test_what_is_left_can_be_printed_and_done_elsewhere(tmp_path: Path):
    study = save_study(tmp_path)
    run_whole(study, "--only", "half")
    lines = run_whole(study, "--only", "full", "--print").splitlines()
    assert len(lines) == RUNS // 3
    for line in lines:
        subprocess.run(line, shell=True, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    assert "16 of 24 runs are there." in run_whole(study, "--collect")
    assert evaluated(study) == 2 * RUNS // 3


def test_each_part_has_a_name_of_its_own_for_the_launcher(tmp_path: Path):
    launcher, step = Launcher("srun --job-name {run} {python}"), Step(["train.py"])
    words = launcher.command(step, tmp_path / "out/runs/late/7/full/1/log.txt")
    assert words == ["srun", "--job-name", "late-7-full-1", sys.executable, "train.py"]
