"""Which optimizer settings are refused, because megatron.core would fail on them later or train something else."""

from typing import Any

import pytest
import torch

from megatron_atesd.config import ScheduleConfig
from megatron_atesd.errors import ConfigError
from megatron_atesd.train.optimizer import optimizer_settings


@pytest.mark.parametrize(
    ("optimizer", "ddp", "said"),
    [
        ({"use_distributed_optimizer": True, "optimizer": "sgd"}, {}, "use_distributed_optimizer is true with optimizer.optimizer sgd"),
        ({"use_distributed_optimizer": True}, {"overlap_param_gather": True}, "ddp.overlap_param_gather is true, but needs"),
        ({}, {"overlap_param_gather": True, "overlap_grad_reduce": True}, "ddp.overlap_param_gather is true, but needs"),
        ({"use_distributed_optimizer": True}, {"use_distributed_optimizer": False}, "is decided by optimizer.use_distributed_optimizer"),
    ],
)
def test_refused(optimizer: dict[str, Any], ddp: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        optimizer_settings(torch.float32, optimizer, ddp, ScheduleConfig())
    assert said in str(error.value)


@pytest.mark.parametrize("distributed", [False, True])
def test_gradients_are_divided_exactly_if_the_optimizer_is(distributed: bool) -> None:
    _, ddp = optimizer_settings(torch.float32, {"use_distributed_optimizer": distributed}, {}, ScheduleConfig())
    assert ddp.use_distributed_optimizer is distributed
