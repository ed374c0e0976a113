"""The learning rate of every update, against its definition, for several warm-ups and decays; and after a resume."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
from megatron.core.optimizer import OptimizerConfig

from megatron_atesd.config import ScheduleConfig
from megatron_atesd.train.learning_rate import learning_rate_scheduler

LR, UPDATES = 2e-5, 20
DECAYS: dict[str, dict[str, Any]] = {
    "constant": {"decay": "constant"},
    "linear": {"decay": "linear", "min_lr": 1e-6},
    "cosine": {"decay": "cosine"},
    "wsd": {"decay": "wsd", "decay_updates": 5, "min_lr": 1e-6},
}


def scheduler_of(schedule: ScheduleConfig) -> Any:
    """Around one group of parameters."""
    optimizer: Any = SimpleNamespace(param_groups=[{"lr": 0.0, "weight_decay": 0.0}])
    return learning_rate_scheduler(optimizer, OptimizerConfig(lr=LR, weight_decay=0.1), schedule, UPDATES)


def rates(scheduler: Any, updates: int) -> list[float]:
    """Of the next updates."""
    used = []
    for _ in range(updates):
        used.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.step(increment=1)
    return used


def expected(update: int, schedule: ScheduleConfig) -> float:
    """Of update 1, 2, …"""
    if update <= schedule.warmup_updates:
        return LR * update / schedule.warmup_updates
    full = max(1, schedule.warmup_updates)  # the update from which on the learning rate falls
    past = (update - full) / (UPDATES + 1 - full)
    left = {
        "constant": 1.0,
        "linear": 1 - past,
        "cosine": (1 + math.cos(math.pi * past)) / 2,
        "wsd": min(1.0, (UPDATES + 1 - update) / (schedule.decay_updates or 1)),
    }[schedule.decay]
    return schedule.min_lr + left * (LR - schedule.min_lr)


@pytest.mark.parametrize("warmup", [0, 1, 2, 3, 7, 15])
@pytest.mark.parametrize("decay", DECAYS)
def test_every_update_has_its_learning_rate(decay: str, warmup: int) -> None:
    schedule = ScheduleConfig(warmup_updates=warmup, **DECAYS[decay])
    assert rates(scheduler_of(schedule), UPDATES) == pytest.approx([expected(update, schedule) for update in range(1, UPDATES + 1)])


@pytest.mark.parametrize("finished", [0, 1, 4, 12])
@pytest.mark.parametrize("decay", DECAYS)
def test_a_resumed_run_goes_on_where_it_was(decay: str, finished: int) -> None:
    schedule = ScheduleConfig(warmup_updates=5, **DECAYS[decay])
    writer, reader = scheduler_of(schedule), scheduler_of(schedule)
    rates(writer, finished)
    reader.load_state_dict(writer.state_dict())
    assert rates(reader, UPDATES - finished) == rates(scheduler_of(schedule), UPDATES)[finished:]


def test_a_checkpoint_that_counted_the_warm_up_from_zero_goes_on_with_this_one() -> None:
    schedule = ScheduleConfig(warmup_updates=5)
    scheduler = scheduler_of(schedule)
    scheduler.load_state_dict({**scheduler.state_dict(), "num_steps": 2, "lr_warmup_steps": 5})
    assert rates(scheduler, 4) == pytest.approx([LR * 3 / 5, LR * 4 / 5, LR, LR])
