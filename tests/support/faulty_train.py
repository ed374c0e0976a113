"""tools/train.py in which rank 1 has a fault, in the rollout of update 3, and only the first time that torchrun starts it.

torchrun … tests/support/faulty_train.py raise|hang|kill|stop [arguments of tools/train.py]
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from megatron_atesd.errors import run_command
from megatron_atesd.train.training_run import TrainingRun
from tools.train import main

FAULTY_UPDATE = 2  # counted from 0


def fail() -> None:
    raise ValueError("rank one has a bad day")


def sleep_for_ever() -> None:
    time.sleep(3600)


FAULTS: dict[str, Callable[[], None]] = {
    "raise": fail,
    "hang": sleep_for_ever,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}


def install(fault: Callable[[], None]) -> None:
    rollout = TrainingRun.rollout

    def faulty_rollout(self: TrainingRun, problems: Sequence[Any], first: int) -> Any:
        update, first_start = first // self.config.data.batch, os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if update == FAULTY_UPDATE and first_start and os.environ["RANK"] == "1":
            fault()
        return rollout(self, problems, first)

    TrainingRun.rollout = faulty_rollout


if __name__ == "__main__":
    install(FAULTS[sys.argv.pop(1)])
    run_command(main)
