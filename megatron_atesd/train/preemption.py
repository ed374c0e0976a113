"""A request to stop: SIGTERM and SIGUSR1, as schedulers send them before they take the machine away."""

import signal
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """While inside, these signals are noted and nothing else; any rank's counts for all.

    with StopRequest() as stop:
        …
        if stop.agreed(): …
    """

    def __init__(self) -> None:
        self._received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number

    def agreed(self) -> str:
        """Name of a signal that some rank has received, '' when none has. Collective."""
        received = torch.tensor(self._received)
        dist.all_reduce(received, op=dist.ReduceOp.MAX)
        return signal.Signals(int(received)).name if received else ""
