"""Seconds by phase and peak memory of the process that runs a contender."""

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def now() -> float:
    """Seconds; work given to a GPU is waited for first."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Stopwatch:
    """Adds up the seconds of named phases of one step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = now()
        yield
        self.seconds[name] += now() - started

    def backward(self, name: str, loss: Tensor, hidden: Tensor) -> None:
        """Count the backward from `loss` until the gradient of `hidden` is complete; that of leaf weights between them is inside too."""
        started: list[float] = []

        def begin(_: Tensor) -> None:
            started.append(now())

        def end(_: Tensor) -> None:
            self.seconds[name] += now() - started.pop()

        loss.register_hook(begin)
        hidden.register_hook(end)

    def timed_loss(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` with distill_loss's arguments and results; its forward and backward count as the phase `loss`."""

        def timed(hidden_TH: Tensor, *rest: Any, **options: Any) -> Any:
            with self.phase("loss"):
                loss, *others = function(hidden_TH, *rest, **options)
            self.backward("loss", loss, hidden_TH)
            return (loss, *others)

        return timed


class PeakMemory:
    """Largest memory in use, GiB: the process's resident memory, with CUDA what torch allocated on the device.

    Linux gives the peak since `reset`; other systems the peak of the whole process, which `reset` cannot lower.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.reset()
        self.start = self.peak()

    def reset(self) -> None:
        """Forget earlier peaks."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        elif _CLEAR.exists():
            _CLEAR.write_text("5")

    def peak(self) -> float:
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() / 2**30
        if _STATUS.exists():
            lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
            return int(lines["VmHWM"].split()[0]) / 2**20
        unit = 1 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30

    def figures(self) -> dict[str, float]:
        """`peak_gib` and, over what was in use when this object was made, `over_start_gib`."""
        peak = self.peak()
        return {"peak_gib": peak, "over_start_gib": peak - self.start}
