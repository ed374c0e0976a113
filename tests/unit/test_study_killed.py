"""A study that is killed at any time ends, by the same command, as one that was left alone."""

import random
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from megatron_atesd.faults.torchrun import kill
from tests.support.fake_study import ROOT, command, save_study
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


def test_what_is_left_can_be_printed_and_done_elsewhere(tmp_path: Path):
    study = save_study(tmp_path)
    run_whole(study, "--only", "half")
    lines = run_whole(study, "--only", "full", "--print").splitlines()
    assert len(lines) == RUNS // 3
    for line in lines:
        subprocess.run(line, shell=True, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    assert "16 of 24 runs are there." in run_whole(study, "--collect")
    assert evaluated(study) == 2 * RUNS // 3
