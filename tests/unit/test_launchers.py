"""What the launchers in examples/ start: seen by a stand-in for Python that only says how it was called."""

import os
import re
import subprocess
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LAUNCHERS = sorted(EXAMPLES.glob("*_qwen3_*.sh"))
NODES = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "GPUS_PER_NODE", "JOIN_MINUTES", "JOB_ID", "MAX_RESTARTS")
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


def test_slurm_says_the_same(stand_in: Path) -> None:
    slurm = {"SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "node0,node1", "SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "8"}
    assert called(stand_in, **slurm) == called(stand_in, **TWO_NODES, GPUS_PER_NODE="8")


@pytest.mark.parametrize("missing", ["NODE_RANK", "MASTER_ADDR"])
def test_several_nodes_without_number_or_meeting_point_are_refused(missing: str, stand_in: Path) -> None:
    ended = start(stand_in, LAUNCHERS[0], **{name: value for name, value in TWO_NODES.items() if name != missing})
    assert ended.returncode == 2
    assert re.fullmatch(rf"error: NNODES is 2, but {missing} is not set; .*\n", ended.stderr)


def test_within_torchrun_a_launcher_is_one_rank(stand_in: Path) -> None:
    """An operator's RANK for the whole node does not make it one."""
    assert called(stand_in, TORCHELASTIC_RUN_ID="7", RANK="0").startswith(f"-u {EXAMPLES}/../tools/train.py --config ")
    assert called(stand_in, RANK="0").startswith("-m torch.distributed.run ")
