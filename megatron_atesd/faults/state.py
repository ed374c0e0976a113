"""What a checkpoint or a run holds, undivided and without what depends on the machine, to compare two of them bit by bit."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from megatron_atesd.checkpoint.plain_values import COMMON_OBJECT
from megatron_atesd.checkpoint.reading import read_plain_values


def checkpoint_state(folder: Path) -> dict[str, Any]:
    """Every tensor and plain value of a checkpoint step_N by its path; the run directory's own name aside."""
    with tempfile.TemporaryDirectory() as scratch:
        dcp_to_torch_save(folder / "weights", Path(scratch) / "all.pt")
        tensors = torch.load(Path(scratch) / "all.pt", weights_only=True)
    tensors.pop(COMMON_OBJECT, None)  # the plain values once more, with the run directory's name
    plain = read_plain_values(folder)
    plain["run"]["config"]["run"].pop("dir")
    return dict(_leaves({"tensors": tensors, "plain": plain}, ""))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        yield path, value
    for name, part in items or ():
        yield from _leaves(part, f"{path}/{name}")


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Paths that only one has, or that differ in any bit."""
    return sorted(one.keys() ^ other.keys()) + [path for path in one if path in other and not _equal(one[path], other[path])]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(_bits(one), _bits(other))
    return type(one) is type(other) and (bool(one == other) or bool(one != one and other != other))  # two nan are the same


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, none for a run that wrote none yet."""
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def reproducible(line: Mapping[str, Any]) -> dict[str, Any]:
    """An update's metrics without those that depend on the machine's mood."""
    return {name: value for name, value in line.items() if name.split("/")[0] not in ("time", "perf", "memory")}
