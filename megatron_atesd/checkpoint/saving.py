"""A folder being written: whole, with its checksums, or not at all.

Beside each rank a process writes the rank's share of the tensors and takes its checksums; it is forked, so that it keeps the values of
that moment while training goes on. When all have ended, the ranks give the folder its name together.
"""

import os
import shutil
from collections.abc import Callable
from functools import partial
from inspect import signature
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue, AsyncRequest
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy

from megatron_atesd.checkpoint.folders import WRITING, delete, replace_folder, sync_tree
from megatron_atesd.checkpoint.hf_files import copy_hf_files
from megatron_atesd.checkpoint.manifest import checksums, listed_files, write_manifest
from megatron_atesd.checkpoint.plain_values import common_object, write_common_file, write_format
from megatron_atesd.checkpoint.save_queue import WriteResults, answering, end_with_parent
from megatron_atesd.errors import CheckpointError
from megatron_atesd.parallel.agreement import agreed, on_rank_0, place

# megatron.core's own writer, the only one of 0.16; later versions would take that of another package, nvidia-resiliency-ext, where it is
# installed, and nothing else where not: it is not the process that this module knows, ends with its parent, and has checksums of.
_OWN_WRITER: dict[str, Any] = (
    {"async_strategy": "mcore"} if "async_strategy" in signature(TorchDistSaveShardedStrategy.async_save).parameters else {}
)


class FolderSave:
    """One save of `final`: weights/ from a sharded state, hf/ = `hf_files` without its weights, SHA256SUMS.

    Raises CheckpointError, on all ranks alike, when anything cannot be written; what was written so far is removed then, and an older
    `final` stays as it was. Collective, as every method.
    """

    def __init__(self, final: Path, state: dict[str, Any], hf_files: Path) -> None:
        """Start; on return the saved values are safe from changes."""
        self.final, self._failing = final, f"{final} cannot be saved"
        self._queue = AsyncCallsQueue()
        # A name of its own: a process of a killed job that still writes cannot reach the files of the job that took over.
        self._partial = on_rank_0(lambda: final.with_name(f"{final.name}.{uuid4().hex[:8]}{WRITING}"), self._failing)
        self._or_remove(partial(self._start, state, hf_files))

    def finished(self, wait: bool) -> bool:
        """Whether `final` is there; with `wait`, once it is."""
        return self._or_remove(lambda: bool(self._queue.maybe_finalize_async_calls(blocking=wait)))

    def _or_remove(self, step: Callable[[], Any]) -> Any:
        try:
            return step()
        except CheckpointError as error:
            # torch's writer hides a full disk behind errors of its own.
            free = on_rank_0(lambda: _free_gib(self.final), self._failing)
            if place()[0] == 0:
                delete(self._partial)
            raise CheckpointError(f"{error} ({free:.2f} GiB are free there)") from error

    def _start(self, state: dict[str, Any], hf_files: Path) -> None:
        on_rank_0(partial(_new_folder, self._partial, hf_files), self._failing)
        results: list[WriteResults] = []
        agreed(lambda: results.append(WriteResults()), self._failing)
        with answering(*results):
            request = self._requested(state, self._partial / "weights")
        answers, answer = Pipe(duplex=False)
        if request.async_fn is not None:
            write = partial(_write_and_sum, request.async_fn, self._partial, place()[0], answer)
            request = request._replace(async_fn=write)
        finish = partial(self._finish, request, answers, answer)
        self._queue.schedule_async_request(request._replace(finalize_fns=[finish]))

    def _requested(self, state: dict[str, Any], weights: Path) -> AsyncRequest:
        """What is to be written, and how: the steps of dist_checkpointing.save, which from one version to the next writes the plain values
        elsewhere, and on rank 0 alone, while the others go on to wait for it."""
        parts: tuple[Any, Any] = save_preprocess(state)
        sharded, plain = parts
        sharded["common_state"] = common_object(plain, place()[0])
        on_rank_0(partial(write_common_file, weights, plain), self._failing)
        return TorchDistSaveShardedStrategy("torch_dist", 1).async_save(sharded, weights, **_OWN_WRITER)

    def _finish(self, request: AsyncRequest, answers: Connection, answer: Connection) -> None:
        answer.close()
        (write_metadata,) = request.finalize_fns
        agreed(_releasing(write_metadata, _release_from_broadcast), self._failing)
        on_rank_0(partial(write_format, self._partial / "weights"), self._failing)
        sums = agreed(partial(answers.recv) if request.async_fn else dict, self._failing)
        answers.close()
        on_rank_0(lambda: self._complete({name: value for of_rank in sums for name, value in of_rank.items()}), self._failing)

    def _complete(self, sums: dict[str, str]) -> None:
        rest = [name for name in listed_files(self._partial) if name not in sums]
        write_manifest(self._partial, sums | checksums(self._partial, rest))
        sync_tree(self._partial)
        replace_folder(self._partial, self.final)


def _free_gib(path: Path) -> float:
    there = next(parent for parent in path.absolute().parents if parent.exists())
    return shutil.disk_usage(there).free / 2**30


def _new_folder(folder: Path, hf_files: Path) -> None:
    (folder / "weights").mkdir(parents=True)
    copy_hf_files(hf_files, folder / "hf")


def _write_and_sum(write: Callable[..., None], folder: Path, rank: int, answer: Connection, *arguments: Any) -> None:
    """In the writing process: this rank's files, then their checksums to the rank."""
    end_with_parent()
    os.register_at_fork(after_in_child=end_with_parent)  # megatron.core's helpers, which could wait for this process for ever
    write(*arguments)
    answer.send(checksums(folder, [path.relative_to(folder).as_posix() for path in folder.glob(f"weights/__{rank}_*.distcp")]))


def _releasing(step: Callable[[], None], release: Callable[[], Any]) -> Callable[[], None]:
    """`step`, in which rank 0 writes a file before a collective that the others wait in already: should that fail, it joins them first."""

    def attempt() -> None:
        try:
            step()
        except OSError:
            release()
            raise

    return attempt


def _release_from_broadcast() -> None:
    """What megatron.core's finalisation sends when a write has failed: every rank raises."""
    dist.broadcast(torch.ones(1, dtype=torch.int, device=torch.cuda.current_device()), src=0)
