"""Checkpoints of a whole run, independent of TP × PP × DP (megatron.core dist_checkpointing, format torch_dist).

A model folder, and each `checkpoints/step_N/`, is `weights/` (torch_dist) beside `hf/` (config.json, tokenizer, generation config).
A checkpoint is written under a temporary name, fsynced and renamed; then `latest` moves to it.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker, get_cuda_rng_tracker

from megatron_atesd.errors import CheckpointError
from megatron_atesd.model.qwen3 import HiddenStateGPT
from megatron_atesd.train.hf_files import copy_hf_files
from megatron_atesd.train.safe_pickle import guarded
from megatron_atesd.train.save_queue import install_save_queue

MODEL_PREFIX = "model."


def model_state(model: HiddenStateGPT) -> dict[str, Any]:
    """Sharded state of the weights alone, under the prefix `model.`."""
    return model.sharded_state_dict(prefix=MODEL_PREFIX)


def write_folder(final: Path, state: dict[str, Any], hf_files: Path) -> None:
    """Write `final` whole or not at all: weights/ from the sharded `state`, hf/ = `hf_files` without its weights. Collective."""
    partial = final.with_name(final.name + ".partial")
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "weights").mkdir(parents=True)
        copy_hf_files(hf_files, partial / "hf")
    dist.barrier()
    install_save_queue()
    dist_checkpointing.save(state, str(partial / "weights"))
    dist.barrier()
    if dist.get_rank() == 0:
        _sync_tree(partial)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        _sync(final.parent)
    dist.barrier()


def read_folder(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Fill the sharded `state` from `folder`; returns it with the plain values that were saved beside it. Collective.

    Raises CheckpointError when the folder is not a model folder or lacks a tensor that `state` asks for.
    """
    weights = folder / "weights"
    if not (weights / "metadata.json").is_file():
        raise CheckpointError(
            f"{folder}: no Megatron weights here (weights/metadata.json); convert with checkpoints_convert/hf_to_megatron.py"
        )
    with guarded(weights):
        loaded = dist_checkpointing.load(state, str(weights))
    assert isinstance(loaded, dict)  # a tuple only for strict modes that report
    return loaded


def stored_dtypes(folder: Path) -> set[torch.dtype]:
    """The types in which the model weights of `folder` are stored. Raises CheckpointError when there are none."""
    with guarded(folder / "weights"):
        tensors = dist_checkpointing.load_tensors_metadata(str(folder / "weights"))
    return {tensor.dtype for name, tensor in tensors.items() if isinstance(tensor, ShardedTensor) and name.startswith(MODEL_PREFIX)}


class RunCheckpoints:
    """The checkpoints of one run directory."""

    def __init__(self, run_dir: Path, keep: int) -> None:
        self.folder, self.keep = run_dir / "checkpoints", keep

    def latest(self) -> Path | None:
        """The newest complete checkpoint, by the `latest` file; None when there is none."""
        pointer = self.folder / "latest"
        if not pointer.is_file():
            return None
        target = self.folder / pointer.read_text().strip()
        if not target.is_dir():
            raise CheckpointError(
                f"{pointer} names {target.name}, which is missing; write the name of an existing step_N into it or delete it"
            )
        return target

    def save(self, update: int, state: dict[str, Any], hf_files: Path) -> Path:
        """Write step_<update>, move `latest`, drop checkpoints older than the newest `keep`. Collective."""
        target = self.folder / f"step_{update}"
        if dist.get_rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
        write_folder(target, state, hf_files)
        if dist.get_rank() == 0:
            self._point(target.name)
            self._drop_old()
        return target

    def _point(self, name: str) -> None:
        temporary = self.folder / "latest.partial"
        temporary.write_text(name + "\n")
        _sync(temporary)
        os.replace(temporary, self.folder / "latest")
        _sync(self.folder)

    def _drop_old(self) -> None:
        steps = sorted(self.folder.glob("step_*[0-9]"), key=lambda path: int(path.name.removeprefix("step_")))
        for old in steps[: -self.keep] if self.keep else []:
            shutil.rmtree(old)


def rng_states() -> list[Mapping[str, Any]]:
    """Every rank's random-number states, in rank order (equal list on all ranks). Collective."""
    mine = {"torch": torch.get_rng_state(), "tracker": _tracker().get_states()}
    if torch.cuda.is_available():
        mine["cuda"] = torch.cuda.get_rng_state()
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    return gathered


def restore_rng(states: list[Mapping[str, Any]]) -> None:
    """Put this rank's states back; with another world size the seeds of the start stay in force."""
    if len(states) != dist.get_world_size():
        return
    mine = states[dist.get_rank()]
    torch.set_rng_state(mine["torch"])
    _tracker().set_states(mine["tracker"])
    if torch.cuda.is_available() and "cuda" in mine:
        torch.cuda.set_rng_state(mine["cuda"])


def _tracker() -> CudaRNGStatesTracker:
    tracker = get_cuda_rng_tracker()
    assert tracker is not None
    return tracker


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync(path)
