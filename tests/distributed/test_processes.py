"""Ranks of which one sees a GPU and the other none."""

import os
from unittest.mock import patch

import pytest
import torch

from megatron_atesd.errors import ConfigError
from megatron_atesd.parallel.session import processes
from tests.support.launch import run_distributed
from tests.support.patience import PATIENCE


def refusal(has_gpu: tuple[bool, bool]) -> str:
    with (
        patch.object(torch.cuda, "is_available", lambda: has_gpu[int(os.environ["RANK"])]),
        pytest.raises(ConfigError) as refused,
        processes(PATIENCE / 60),
    ):
        pass
    return str(refused.value)


def test_a_rank_without_a_gpu_ends_the_job_on_all_instead_of_hanging() -> None:
    said = run_distributed(refusal, 2, (True, False))
    assert set(said) == {
        "rank 0 would use cpu:gloo,cuda:nccl, rank 1 gloo: not all of them see a GPU; tools/doctor.py, started like this job, says which"
    }
