"""Writing and reading a torch_dist checkpoint one piece at a time; megatron.core's own functions hold a whole model in memory.

The format is torch.distributed.checkpoint's (.metadata and .distcp files) with megatron.core's metadata.json and plain values beside it.
"""

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_atesd.checkpoint.ahead import made_ahead
from megatron_atesd.checkpoint.plain_values import COMMON_OBJECT, read_plain_values, write_common_file, write_format
from megatron_atesd.checkpoint.safe_pickle import guarded, plain_values_only
from megatron_atesd.checkpoint.written_files import HashedFile
from megatron_atesd.errors import CheckpointError


@dataclass(frozen=True)
class Chunk:
    """Part of the stored tensor `key` of shape `size`, made when its turn to be written comes."""

    key: str
    size: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]


def write_chunks(folder: Path, chunks: Sequence[Chunk], empty_objects: Sequence[str]) -> dict[str, str]:
    """Write the checkpoint `folder`: the chunks in their order, two in memory at a time, and an empty object under each other name.

    Returns the SHA-256 (hexadecimal) of the files with tensors, by name.
    """
    folder.mkdir(parents=True)
    # One file and one thread: each further thread would hold a chunk of its own.
    # The steps are those of torch.distributed.checkpoint.save, which wraps what goes wrong inside into an exception of its own.
    # Without copying ahead to the host, which is for tensors on a GPU, items keep their order.
    writer = _Writer(folder, single_file_per_rank=True, sync_files=False, thread_count=1, per_thread_copy_ahead=0)
    writer.fs = files = _Files()
    # As megatron.core stores an object without content, and plain values of which there are none.
    planner = _ChunkPlanner(chunks, {COMMON_OBJECT: {}, **dict.fromkeys(empty_objects)})
    writer.set_up_storage_writer(is_coordinator=True)
    plans, metadata = planner.create_global_plan([writer.prepare_local_plan(planner.create_local_plan())])
    (plan,) = writer.prepare_global_plan(plans)
    writer.finish(metadata, [writer.write_data(plan, planner).wait()])
    write_common_file(folder, {})
    write_format(folder)
    return {name: digest for name, digest in files.digests.items() if (folder / name).is_file()}  # not of .metadata's temporary name


class _Writer(FileSystemWriter):
    def storage_meta(self) -> None:
        """Nothing: it would be the folder's path on this machine, which is no record that a reader should unpickle."""


class _Files(FileSystem):
    """Makes new files and knows their SHA-256 afterwards, by name."""

    def __init__(self) -> None:
        self.digests: dict[str, str] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        with HashedFile(path) as stream:
            yield stream
        self.digests[Path(path).name] = stream.sha256.hexdigest()


class _ChunkPlanner(DefaultSavePlanner):
    """Plans from descriptions; the values come into being for resolve_data, which the writer calls item by item."""

    def __init__(self, chunks: Sequence[Chunk], objects: Mapping[str, Any]) -> None:
        super().__init__(flatten_state_dict=False)
        self._chunks = {_index(chunk): chunk for chunk in chunks}
        self._made = made_ahead([partial(_made, chunk) for chunk in chunks])
        self._objects = objects

    def create_local_plan(self) -> SavePlan:
        objects = [WriteItem(MetadataIndex(name), WriteItemType.BYTE_IO) for name in self._objects]
        self.plan = SavePlan([*(_write_item(chunk) for chunk in self._chunks.values()), *objects])
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        if write_item.type == WriteItemType.SHARD:
            chunk, tensor = next(self._made)
            assert chunk is self._chunks[write_item.index]
            return tensor.reshape(chunk.sizes)
        torch.save([self._objects[write_item.index.fqn]], stored := io.BytesIO())
        return stored


def _made(chunk: Chunk) -> tuple[Chunk, Tensor]:
    return chunk, chunk.make()


def _index(chunk: Chunk) -> MetadataIndex:
    return MetadataIndex(chunk.key, torch.Size(chunk.offsets))


def _write_item(chunk: Chunk) -> WriteItem:
    place = ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes))
    data = TensorWriteData(place, TensorProperties(dtype=chunk.dtype), torch.Size(chunk.size))
    return WriteItem(_index(chunk), WriteItemType.SHARD, tensor_data=data)


class StoredTensors:
    """The tensors of the checkpoint `folder` whose names begin with `prefix`. Raises CheckpointError when it cannot be read."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self.folder, self.prefix = folder, prefix
        self._reader = FileSystemReader(folder)
        read_plain_values(folder)  # not needed here, but a folder in which they are damaged is not to be trusted
        with guarded(folder):
            metadata = self._reader.read_metadata()
            self._reader.set_up_storage_reader(metadata, is_coordinator=True)
        self._tensors: Mapping[str, TensorStorageMetadata] = {
            name.removeprefix(prefix): stored
            for name, stored in metadata.state_dict_metadata.items()
            if name.startswith(prefix) and isinstance(stored, TensorStorageMetadata)
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """By name without the prefix."""
        return {name: tuple(stored.size) for name, stored in self._tensors.items()}

    def dtypes(self) -> set[torch.dtype]:
        return {stored.properties.dtype for stored in self._tensors.values()}

    def rows(self, name: str) -> list[tuple[int, int]]:
        """First and last + 1 of the rows that are stored together."""
        return sorted({(chunk.offsets[0], chunk.offsets[0] + chunk.sizes[0]) for chunk in self._tensors[name].chunks})

    def read(self, name: str, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
        """That part of the tensor; in memory are at most one stored chunk twice and the part. Raises CheckpointError."""
        stored, part = self._tensors[name], ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        items = create_read_items_for_chunk_list(self.prefix + name, stored, [part])
        if sum(prod(item.lengths) for item in items) != prod(sizes):
            raise CheckpointError(f"{self.folder}: {self.prefix}{name} lacks values; use another checkpoint")
        tensor = torch.empty(sizes, dtype=stored.properties.dtype)
        with plain_values_only(self.folder):
            self._reader.read_data(LoadPlan(items), _Into(tensor)).wait()
        return tensor


class _Into(DefaultLoadPlanner):
    """Puts everything that is read into one tensor, at the places that the items name."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self._tensor = tensor

    def lookup_tensor(self, index: Any) -> Tensor:
        return self._tensor
