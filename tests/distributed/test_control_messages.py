"""Where there are GPUs, what ranks tell each other by way of agreement goes over gloo and leaves NCCL to tensors."""

import signal
from typing import Any

import pytest
import torch.distributed as dist

from megatron_atesd.config import ExposureConfig
from megatron_atesd.exposure.service import ExposureService
from megatron_atesd.parallel.agreement import agreed
from megatron_atesd.parallel.groups import from_rank_0, gathered
from megatron_atesd.parallel.session import WITH_CUDA
from megatron_atesd.records import Exposure
from megatron_atesd.train.preemption import StopRequest
from tests.support.launch import run_distributed


def talk() -> dict[str, Any]:
    """With a backend in NCCL's place that carries nothing, and no stand-in for CUDA: what would ask for a GPU fails."""
    dist.Backend.backend_capability["fake"] = ["cpu", "cuda"]
    dist.init_process_group(WITH_CUDA.replace("nccl", "fake"))
    rank, group = dist.get_rank(), dist.new_group([0, 1])
    service = ExposureService(ExposureConfig(mode="fixed", fixed=0.25 + 0.5 * rank), updates=4, seed=rank)
    with StopRequest() as stop:
        if rank == 1:
            signal.raise_signal(signal.SIGUSR1)
        told = {
            "agreed": agreed(lambda: rank, "never"),
            "exposure": service.propose(0),
            "signal": stop.agreed(),
        }
    told |= {"of a group": gathered(rank, group), "of rank 0": from_rank_0(f"from {rank}")}
    dist.barrier(group)  # pyright: ignore[reportArgumentType]
    return told


@pytest.fixture(scope="module")
def told() -> list[dict[str, Any]]:
    return run_distributed(talk, 2)


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("agreed", [0, 1]),
        ("exposure", Exposure(0.25, -1)),
        ("signal", "SIGUSR1"),
        ("of a group", [0, 1]),
        ("of rank 0", "from 0"),
    ],
)
def test_it_reaches_every_rank(what: str, expected: Any, told: list[dict[str, Any]]) -> None:
    assert [rank[what] for rank in told] == [expected, expected]
