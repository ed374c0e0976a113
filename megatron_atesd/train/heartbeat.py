"""Where each rank is. All tell it to the job's store, so that those who wait in vain can say for whom; who is late shows its stack."""

import json
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

_SHARE = 0.9  # of the collectives' timeout, so that a rank which holds up the others is heard before they end the job


@dataclass(frozen=True)
class Place:
    """The phase a rank is in, how many it has entered, and since when (seconds since the epoch)."""

    phase: str
    number: int
    since: float


class Heartbeat:
    """This rank's place, told to the job's store; create it after the default process group.

    with Heartbeat(timeout_minutes) as heartbeat:
        heartbeat.enter("the rollout of update 3")

    A phase that takes longer than 0.9 of its limit prints its stack, once; none does so after leaving, in whatever way.
    """

    def __init__(self, timeout_minutes: float) -> None:
        self.timeout_minutes = timeout_minutes
        self.rank = dist.get_rank()
        self.number = 0
        self.timer: threading.Timer | None = None

    def __enter__(self) -> "Heartbeat":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def enter(self, phase: str, minutes: float | None = None) -> None:
        """Say that a phase begins, such as `rollout of update 3`, in which collectives may wait `minutes` (default: timeout_minutes)."""
        self._stop()
        self.number += 1
        place = Place(phase, self.number, time.time())
        _get_default_store().set(_key(self.rank), json.dumps(asdict(place)))
        limit = _SHARE * 60 * (self.timeout_minutes if minutes is None else minutes)
        self.timer = threading.Timer(limit, _show_stack, (self.rank, place, threading.get_ident()))
        self.timer.daemon = True
        self.timer.start()

    def _stop(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer.join()  # it may be showing a stack just now


def who_is_late() -> str:
    """The ranks that have entered the fewest phases, by what they told the store, with where they are; for a person."""
    if not dist.is_initialized():
        return "not all ranks have started"
    try:
        places = {rank: place for rank in range(dist.get_world_size()) if (place := _place_of(rank))}
    except dist.DistNetworkError:
        return "the job's store is lost as well, which is on the node of rank 0"
    last = min((place.number for place in places.values()), default=0)
    late = {rank: place for rank, place in places.items() if place.number == last}
    if len(late) == len(places):
        return f"all ranks are in the same phase ({next(iter(places.values())).phase})" if places else "no rank has begun"
    return "; ".join(f"rank {rank} has been in {place.phase} for {time.time() - place.since:.0f} s" for rank, place in late.items())


def _place_of(rank: int) -> Place | None:
    store: Any = _get_default_store()
    return Place(**json.loads(store.get(_key(rank)))) if store.check([_key(rank)]) else None


def _key(rank: int) -> str:
    return f"megatron_atesd/heartbeat/{rank}"


def _show_stack(rank: int, place: Place, thread: int) -> None:
    frame = sys._current_frames().get(thread)
    stack = "".join(traceback.format_stack(frame)) if frame else ""
    text = f"rank {rank} has been in {place.phase} for {time.time() - place.since:.0f} s and is here:\n{stack}"
    print(text, file=sys.stderr, flush=True)
