"""What a rank sends: every collective and message that torch.distributed is asked for, by process group and kind."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


@dataclass(frozen=True)
class Traffic:
    """Calls of one kind in one group, and the bytes of the largest tensor list of each call (what is reduced, gathered or sent)."""

    group: str
    kind: str
    calls: int
    bytes: int


class TrafficCounter(TorchDispatchMode):
    """Counts while active; `names` are the groups that are told apart, all others are `other`.

    A value that is read from a meta tensor, which has none, is 1: gradients are then finite and tokens not absent.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        super().__init__()
        self.names, self.phase = names, ""
        self._calls: Counter[tuple[str, str, str]] = Counter()
        self._bytes: Counter[tuple[str, str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return torch.ones((), dtype=args[0].dtype).item()
        if func.namespace == "c10d" and not func.__name__.startswith("barrier"):
            self._count(func.__name__.partition(".")[0].strip("_"), args)
        if func.namespace == "c10d" and "coalesced" in func.__name__:  # not known for meta tensors: let the fake group answer
            args = tree_map_only(torch.Tensor, lambda _: torch.empty(0), args)
        return func(*args, **(kwargs or {}))

    def _count(self, kind: str, args: Any) -> None:
        lists = [[leaf for leaf in tree_leaves(arg) if isinstance(leaf, torch.Tensor)] for arg in args]
        groups = [arg for arg in args if isinstance(arg, torch.ScriptObject) and "ProcessGroup" in str(arg._type())]
        name = dist.ProcessGroup.unbox(groups[0]).group_name if groups else ""
        key = (self.phase, self.names.get(name, "other"), kind)
        self._calls[key] += 1
        self._bytes[key] += max(sum(t.numel() * t.element_size() for t in tensors) for tensors in lists)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Count under this phase's name while inside."""
        self.phase = phase
        with self:
            yield

    def traffic(self) -> dict[str, list[Traffic]]:
        """By phase, in the order of first use."""
        found: dict[str, list[Traffic]] = {}
        for (phase, group, kind), calls in self._calls.items():
            found.setdefault(phase, []).append(Traffic(group, kind, calls, self._bytes[phase, group, kind]))
        return found
