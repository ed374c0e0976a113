"""Two nodes, each a host with an agent of torchrun: one is lost and comes back, and the run ends as if it had not been."""

import socket
import subprocess
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from megatron_atesd.config import load_config
from megatron_atesd.faults.state import metrics, reproducible
from megatron_atesd.faults.torchrun import kill, ranks, started
from megatron_atesd.train.loop import train
from tests.support.launch import run_distributed
from tests.support.patience import PATIENCE
from tests.support.small_run import ROOT, finish, newest, recipe_overrides, save_inputs, wait_for
from tests.support.two_hosts import Host, two_hosts

pytestmark = pytest.mark.slow

LAUNCHER = ROOT / "examples" / "atesd_qwen3_8b.sh"
UPDATES = 4


@dataclass(frozen=True)
class Nodes:
    """How to start node 0 or 1 of one job."""

    command: list[str]
    port: int
    folder: Path
    hosts: list[Host]

    def output(self, node: int) -> Path:
        return self.folder / f"output of node {node}"

    def start(self, node: int) -> AbstractContextManager[subprocess.Popen[bytes]]:
        host, master = self.hosts[node], self.hosts[0].address
        cluster = {"NNODES": "2", "NODE_RANK": str(node), "MASTER_ADDR": master, "MASTER_PORT": str(self.port), "GPUS_PER_NODE": "1"}
        return started([*host.prefix, *self.command], self.output(node), **host.environment, **cluster, MAX_RESTARTS="3")


@dataclass(frozen=True)
class Lost:
    """A run of two nodes that lost node 1 after its first checkpoint, and finished when that node had come back."""

    run_dir: Path
    had: str  # newest checkpoint when the node was lost
    said: str  # by node 0


def settings(inputs: Path, run_dir: Path) -> list[str]:
    return recipe_overrides(inputs, run_dir, f"--run.updates={UPDATES}", "--checkpoint.every=1")


def train_undisturbed(inputs: Path, run_dir: Path) -> None:
    train(load_config([f"--config={LAUNCHER.with_suffix('.yaml')}", *settings(inputs, run_dir)]))


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def ranks_replaced(node: subprocess.Popen[bytes], before: list[psutil.Process]) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(ranks(node)) and not set(ranks(node)) & set(before)
    return False


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def lost(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Lost:
    """Node 0 starts first and so keeps rank 0: its agent could hand the addresses of lost ranks on to the new ones."""
    folder = tmp_path_factory.mktemp("lost")
    run_dir = folder / "run"
    command = ["bash", str(LAUNCHER), *settings(inputs, run_dir)]
    with (
        two_hosts() as hosts,
        (nodes := Nodes(command, free_port(), folder, hosts)).start(0) as first,
        nodes.start(1) as second,
    ):
        wait_for(lambda: newest(run_dir) != "", first, nodes.output(0))
        before = ranks(first)
        kill(second)
        psutil.wait_procs(before, PATIENCE)  # which may have been about to finish another checkpoint
        had = newest(run_dir)
        with nodes.start(1) as second:
            wait_for(lambda: ranks_replaced(first, before), first, nodes.output(0))
            finish(first, nodes.output(0))
            finish(second, nodes.output(1))
    return Lost(run_dir, had, nodes.output(0).read_text() + nodes.output(1).read_text())


def test_the_node_was_lost_in_the_middle(lost: Lost) -> None:
    assert lost.had in [f"step_{update}" for update in range(1, UPDATES)]


def test_the_other_node_says_what_it_lost(lost: Lost) -> None:
    assert "LostRankError: rank 0 lost another rank" in lost.said


def test_both_nodes_go_on_from_the_newest_checkpoint(lost: Lost) -> None:
    assert f"resumed from {lost.run_dir / 'checkpoints' / lost.had} after {lost.had.removeprefix('step_')} updates" in lost.said


def test_metrics_equal_those_of_a_run_without_the_loss(lost: Lost, inputs: Path, tmp_path: Path) -> None:
    run_distributed(train_undisturbed, 2, inputs, tmp_path)
    lines, expected = metrics(lost.run_dir), metrics(tmp_path)
    assert [line["update"] for line in expected] == list(range(1, UPDATES + 1))
    assert [reproducible(line) for line in lines] == [reproducible(line) for line in expected]
