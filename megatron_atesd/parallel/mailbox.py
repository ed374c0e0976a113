"""Messages between ranks of a pipeline that need not wait for one another."""

from typing import Any

import torch.distributed as dist
from torch import Tensor


class Mailbox:
    """Sends without waiting; what was sent is kept until it has arrived. Messages between two ranks arrive in the order of sending."""

    def __init__(self) -> None:
        self._on_their_way: list[tuple[Any, Tensor]] = []

    def send(self, tensor: Tensor, rank: int) -> None:
        """To global `rank`."""
        self._on_their_way = [(work, sent) for work, sent in self._on_their_way if not work.is_completed()]
        tensor = tensor.contiguous()
        self._on_their_way.append((dist.isend(tensor, rank), tensor))

    def receive(self, tensor: Tensor, rank: int) -> None:
        """Fill `tensor` with the next message of global `rank`."""
        dist.recv(tensor, rank)

    def wait(self) -> None:
        """Until all that was sent has arrived."""
        for work, _ in self._on_their_way:
            work.wait()
        self._on_their_way = []
