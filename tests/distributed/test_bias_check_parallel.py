"""A bias check puts every rank's state back, with shards of weights and with shards of the optimizer."""

from pathlib import Path

import pytest

from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.train.bias_check import check_bias
from megatron_atesd.train.heartbeat import Heartbeat
from tests.support.bias_run import next_update, start, state_of
from tests.support.launch import run_distributed
from tests.support.small_run import save_inputs

SHARDED = ("--optimizer.use_distributed_optimizer=true", "--ddp.overlap_grad_reduce=true", "--ddp.overlap_param_gather=true")


def checked(inputs: Path, tensor: int, overrides: tuple[str, ...]) -> tuple[bool, bool, dict[float, tuple[float, ...]]]:
    """Whether this rank's state came back, whether its next update is that of a run without a check, and the probe's NLL by exposure."""
    with parallel_session(tensor):
        run = start(inputs, f"--parallel.tensor={tensor}", *overrides, world_size=2)
        before = state_of(run)
        with Heartbeat(1.0) as heartbeat:
            found = check_bias(run, heartbeat, lambda: False)
        assert found is not None
        back = state_of(run) == before
        same = next_update(run) == next_update(start(inputs, f"--parallel.tensor={tensor}", *overrides, world_size=2))
        return back, same, {alpha: tuple(reading.losses.values()) for alpha, reading in found.after.items()}


@pytest.mark.parametrize(("tensor", "overrides"), [(2, ()), (1, SHARDED)])
def test_each_ranks_state_comes_back(tensor: int, overrides: tuple[str, ...], tmp_path: Path) -> None:
    results = run_distributed(checked, 2, save_inputs(tmp_path), tensor, overrides)
    assert [result[:2] for result in results] == [(True, True)] * 2
    assert results[0][2] == results[1][2]
    assert len(set(results[0][2].values())) == 3
