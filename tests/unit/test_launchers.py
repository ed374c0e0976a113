"""What the launchers in examples/ start: seen by a stand-in for Python that only says how it was called."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.patience import PATIENCE

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LAUNCHERS = sorted(EXAMPLES.glob("*_qwen3_*.sh"))
NODES = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "GPUS_PER_NODE", "JOIN_MINUTES", "JOB_ID", "MAX_RESTARTS", "LOCAL_ADDR")
CLUSTER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", *NODES)
TWO_NODES = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node0", "JOB_ID": "7"}


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """Commands `python` and `scontrol` in a folder."""
    commands = {"python": 'printf "%s\\n" "$@"', "scontrol": 'echo "$3" | sed "s/,/\\n/g"'}
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def start(stand_in: Path, launcher: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in CLUSTER and not name.startswith("SLURM")}
    path = f"{stand_in}:{inherited['PATH']}"
    return subprocess.run(
        ["bash", str(launcher), *arguments],
        env=inherited | {"PATH": path, "PYTHON": str(stand_in / "python")} | environment,
        capture_output=True,
        text=True,
    )


def called(stand_in: Path, *arguments: str, **environment: str) -> str:
    """The words with which Python was called, in one line."""
    ended = start(stand_in, EXAMPLES / "atesd_qwen3_8b.sh", *arguments, **environment)
    assert ended.returncode == 0, ended.stderr
    return " ".join(ended.stdout.splitlines())


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda path: path.stem)
def test_a_launcher_trains_with_the_recipe_of_its_own_name(launcher: Path, stand_in: Path) -> None:
    words = start(stand_in, launcher, "--run.seed", "2").stdout.splitlines()
    assert words[-5:-2] == [str(EXAMPLES / "../tools/train.py"), "--config", str(launcher.with_suffix(".yaml"))]
    assert words[-2:] == ["--run.seed", "2"]
    assert launcher.with_suffix(".yaml").is_file()


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda path: path.stem)
def test_a_launcher_is_python_as_well(launcher: Path) -> None:
    compile(launcher.read_text(encoding="utf-8"), str(launcher), "exec")
    assert os.access(launcher, os.X_OK)  # for torchrun --no-python


def test_one_node_needs_no_meeting_point(stand_in: Path) -> None:
    assert called(stand_in).startswith("-m torch.distributed.run --nproc-per-node gpu --max-restarts 0 --standalone ")
    assert "--nproc-per-node 4 --max-restarts 3 " in called(stand_in, GPUS_PER_NODE="4", MAX_RESTARTS="3")


def test_several_nodes_meet_at_node_0(stand_in: Path) -> None:
    words = called(stand_in, **TWO_NODES)
    assert "--nnodes 2 --rdzv-backend c10d --rdzv-endpoint node0:29500 --rdzv-id 7 --rdzv-conf is_host=false," in words
    assert "--rdzv-conf is_host=true" in called(stand_in, **TWO_NODES | {"NODE_RANK": "0"})


def test_nodes_wait_for_the_meeting_point_as_long_as_for_each_other(stand_in: Path) -> None:
    assert ",join_timeout=600,read_timeout=600 " in called(stand_in, **TWO_NODES)
    assert ",join_timeout=1800,read_timeout=1800 " in called(stand_in, **TWO_NODES, JOIN_MINUTES="30")


def test_a_node_may_say_how_the_others_reach_it(stand_in: Path) -> None:
    assert " --local-addr 10.0.0.2 " in called(stand_in, **TWO_NODES, LOCAL_ADDR="10.0.0.2")


def test_slurm_says_the_same(stand_in: Path) -> None:
    slurm = {"SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "node0,node1", "SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "8"}
    assert called(stand_in, **slurm) == called(stand_in, **TWO_NODES, GPUS_PER_NODE="8", MASTER_PORT="20007")


def test_slurm_jobs_that_share_a_node_meet_at_different_ports(stand_in: Path) -> None:
    assert "--rdzv-endpoint node0:24568 " in called(stand_in, **TWO_NODES, SLURM_JOB_ID="1234568")
    assert "--rdzv-endpoint node0:29501 " in called(stand_in, **TWO_NODES, SLURM_JOB_ID="1234568", MASTER_PORT="29501")


@pytest.mark.parametrize("missing", ["NODE_RANK", "MASTER_ADDR"])
def test_several_nodes_without_number_or_meeting_point_are_refused(missing: str, stand_in: Path) -> None:
    ended = start(stand_in, LAUNCHERS[0], **{name: value for name, value in TWO_NODES.items() if name != missing})
    assert ended.returncode == 2
    assert re.fullmatch(rf"error: NNODES is 2, but {missing} is not set; .*\n", ended.stderr)


@pytest.mark.parametrize(
    ("variable", "value", "rule"),
    [
        ("NNODES", "2:4", "must be a whole number, 1 or more"),
        ("NODE_RANK", "2", "must be a whole number, 0 to 1"),  # counted from 1: no node would open the meeting point
        ("MASTER_PORT", "70000", "must be a whole number, 1 to 65535"),
        ("JOIN_MINUTES", "1.5", "must be a whole number, 1 or more"),
        ("JOIN_MINUTES", "08", "must be a whole number, 1 or more"),
        ("GPUS_PER_NODE", "eight", "must be a whole number, 1 or more"),
        ("MAX_RESTARTS", "-1", "must be a whole number, 0 or more"),
    ],
)
def test_a_wrong_number_is_refused_before_anything_starts(variable: str, value: str, rule: str, stand_in: Path) -> None:
    ended = start(stand_in, LAUNCHERS[0], **TWO_NODES | {variable: value})
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", f"error: {variable} is '{value}', {rule}\n")


def test_a_node_with_a_number_needs_the_number_of_nodes(stand_in: Path) -> None:
    ended = start(stand_in, LAUNCHERS[0], NODE_RANK="1", MASTER_ADDR="node0")
    assert (ended.returncode, ended.stderr) == (2, "error: NODE_RANK is 1, but NNODES is not set; give the number of nodes\n")


def test_slurm_with_a_task_for_each_gpu_is_refused(stand_in: Path) -> None:
    step = {"SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_NUM_NODES": "2"}
    ended = start(stand_in, LAUNCHERS[0], **TWO_NODES, **step)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.endswith("give srun --ntasks-per-node=1\n")
    assert start(stand_in, LAUNCHERS[0], **TWO_NODES, **step | {"SLURM_STEP_NUM_TASKS": "2"}).returncode == 0


def test_a_launcher_works_through_a_link_and_with_spaces(stand_in: Path) -> None:
    link = stand_in / "a link.sh"
    link.symlink_to(EXAMPLES / "atesd_qwen3_8b.sh")
    words = start(stand_in, link, "--prompt.instruction", "two  words").stdout.splitlines()
    assert words[-4:] == ["--config", str(EXAMPLES / "atesd_qwen3_8b.yaml"), "--prompt.instruction", "two  words"]


def queued_again(folder: Path, srun: str, *arguments: str) -> bool:
    """Whether slurm.sbatch queues its job again after an `srun` that does this, where $dir is the directory that the run is given last."""
    commands = {"srun": f"for word; do case $word in --run.dir) ;; --run.dir=*) dir=${{word#*=}} ;; *) dir=$word ;; esac; done\n{srun}"}
    commands["scontrol"] = 'echo "$@" >> queued'
    (folder / ".venv" / "bin").mkdir(parents=True, exist_ok=True)
    (folder / ".venv" / "bin" / "activate").touch()
    (folder / "queued").unlink(missing_ok=True)
    for name, body in commands.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    subprocess.run(["bash", str(EXAMPLES / "slurm.sbatch"), *arguments], cwd=folder, env=environment, check=True, timeout=PATIENCE)
    return (folder / "queued").exists() and (folder / "queued").read_text() == "requeue 7\n"


FINISH = 'mkdir -p "$dir" && touch "$dir/summary.json"'


@pytest.mark.parametrize("run_dir", [["--run.dir", "else where"], ["--run.dir=else where"], []])
def test_a_slurm_job_is_queued_again_until_its_run_has_finished(run_dir: list[str], tmp_path: Path) -> None:
    launcher = "examples/opsd_qwen3_4b.sh"
    assert queued_again(tmp_path, "true", launcher, *run_dir)
    assert not queued_again(tmp_path, FINISH, launcher, *run_dir)
    assert (tmp_path / ("else where" if run_dir else "runs/opsd_qwen3_4b") / "summary.json").is_file()


def test_a_slurm_job_that_prolongs_a_finished_run_is_queued_again(tmp_path: Path) -> None:
    assert not queued_again(tmp_path, FINISH)
    assert queued_again(tmp_path, "true")


def test_within_torchrun_a_launcher_is_one_rank(stand_in: Path) -> None:
    """An operator's RANK for the whole node does not make it one."""
    assert called(stand_in, TORCHELASTIC_RUN_ID="7", RANK="0").startswith(f"-u {EXAMPLES}/../tools/train.py --config ")
    assert called(stand_in, RANK="0").startswith("-m torch.distributed.run ")
