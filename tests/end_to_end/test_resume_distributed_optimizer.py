"""Resuming is exact where most of the state is divided, late or elsewhere: distributed optimizer, overlap, bf16, offloaded ema teacher."""

import shutil
from pathlib import Path

import pytest
import torch.distributed as dist

from megatron_atesd.config import load_config
from megatron_atesd.faults.state import checkpoint_state, differences
from megatron_atesd.train.loop import train
from tests.support.launch import run_distributed
from tests.support.small_run import arguments, save_inputs

pytestmark = pytest.mark.slow

SETTINGS = (
    "--run.updates=4",
    "--parallel.tensor=1",
    "--model.dtype=bf16",
    "--distill.teacher_offload=true",
    "--optimizer.use_distributed_optimizer=true",
    "--ddp.overlap_grad_reduce=true",
    "--ddp.overlap_param_gather=true",
    "--ddp.bucket_size=20000",
)


def unbroken_and_resumed(inputs: Path, folder: Path) -> None:
    """On two data-parallel ranks: a run of four updates, and one that goes on from its step_2 with the teacher on the device."""
    dist.init_process_group("gloo")
    train(load_config(arguments(inputs, folder / "unbroken", *SETTINGS)))
    if dist.get_rank() == 0:
        shutil.copytree(folder / "unbroken", folder / "resumed")
    dist.barrier()
    train(load_config(arguments(inputs, folder / "resumed", *SETTINGS, "--checkpoint.resume=step_2", "--distill.teacher_offload=false")))


def test_a_resumed_run_ends_in_the_unbroken_runs_state_bit_for_bit(tmp_path: Path) -> None:
    run_distributed(unbroken_and_resumed, 2, save_inputs(tmp_path), tmp_path)
    states = [checkpoint_state(tmp_path / run / "checkpoints" / "step_4") for run in ("unbroken", "resumed")]
    assert [state.pop("/plain/run/config/distill/teacher_offload") for state in states] == [True, False]
    assert [state.pop("/plain/run/config/checkpoint/resume") for state in states] == ["auto", "step_2"]
    unbroken, resumed = states
    assert differences(unbroken, resumed) == []
