"""What a checkpoint's files may contain: a folder from elsewhere must not run code.

Two parts of torch.distributed.checkpoint unpickle without limits: `.metadata`, and the small objects that lie in .distcp files beside the
tensors. Before megatron.core opens a folder, `.metadata` is read here, where a pickle finds only torch's own records; while it is open,
torch.load takes plain values and nothing else (weights_only), also where the caller says otherwise. `common.pt` is loaded so anyhow.
"""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from enum import EnumMeta
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata

from megatron_atesd.data.hf_json import read_json_object
from megatron_atesd.errors import AtesdError, CheckpointError

# metadata.json as megatron.core 0.16 to 0.18 write it; 0.19 leaves the last two out, and reads past them.
FORMAT = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch", "common_backend_version": 1}
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
# Everything that torch's writer puts into .metadata, besides the types of tensors: plain records, and a look-up of layouts by name.
_ALLOWED = {
    "torch": ("Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.distributed.checkpoint.planner": ("BytesIOWriteData", "SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"),
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
}


@contextmanager
def guarded(weights: Path) -> Iterator[None]:
    """For opening the torch_dist folder `weights`: its small files have been checked inside, and it holds what `plain_values_only` says."""
    check_format(weights)
    check_metadata(weights)
    with plain_values_only(weights):
        yield


def check_format(weights: Path) -> None:
    """Raise CheckpointError unless `weights`/metadata.json says FORMAT, whose last two may be missing.

    From 0.17 on megatron.core does not look.
    """
    values = read_json_object(path := weights / "metadata.json")
    for key, known in FORMAT.items():
        named = values.get(key, None if key.startswith("sharded") else known)
        if named != known:
            raise CheckpointError(f"{path}: {key} must be {known}, is {named!r}; use another checkpoint")


@contextmanager
def plain_values_only(weights: Path) -> Iterator[None]:
    """torch.load is held to weights_only; whatever goes wrong inside is raised as a CheckpointError that names `weights`."""
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        yield
    except AtesdError:
        raise
    except (Exception, CheckpointException) as error:  # damaged files raise whatever torch's and megatron.core's readers stumble over
        raise CheckpointError(f"{weights}: cannot be loaded: {_reason(error)}; use another checkpoint") from error
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before


def check_metadata(weights: Path) -> None:
    """Raise CheckpointError unless `weights`/.metadata has records of torch only, and the files that it names are there, at full size."""
    path = weights / ".metadata"
    try:
        if not path.is_file():
            raise FileNotFoundError("there is no such file")
        with path.open("rb") as file:
            metadata = _RecordsOnly(file).load()
        tensors, records = metadata.state_dict_metadata, metadata.storage_data.values()
        ends = sorted((str(record.relative_path), int(record.offset) + int(record.length)) for record in records)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except Exception as error:  # damaged bytes raise whatever the instruction that they happen to spell raises
        raise CheckpointError(f"{path}: missing or damaged ({error}); use another checkpoint") from error
    if not isinstance(metadata, Metadata) or not isinstance(tensors, dict):
        raise CheckpointError(f"{path}: holds no list of tensors; use another checkpoint")
    for name, size in dict(ends).items():  # of each file the last end
        if name != Path(name).name:
            raise CheckpointError(f"{path}: names {name!r}, which is no file of this folder; do not use this checkpoint")
        if not (weights / name).is_file() or (weights / name).stat().st_size < size:
            raise CheckpointError(f"{weights / name}: missing or cut short; use another checkpoint")


def _reason(error: BaseException) -> str:
    if isinstance(error, CheckpointException):  # one error a rank, each with its traceback
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, pickle.UnpicklingError):  # torch's own text goes on to recommend loading it without the check
        return "a file of it is damaged, or holds something else than plain values"
    return " ".join(str(error).split())[:400] or type(error).__name__


class _RecordsOnly(pickle.Unpickler):
    """Refuses every name but those in _ALLOWED before it is looked up, let alone called."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) == ("builtins", "getattr"):
            return _enum_member
        if global_name not in _ALLOWED.get(module_name, ()):
            raise CheckpointError(f"asks for {module_name}.{global_name}, which has no place in a checkpoint; do not use this folder")
        return super().find_class(module_name, global_name)


def _enum_member(enum: Any, name: Any) -> Any:
    """What getattr may do in .metadata: some releases of Python 3.11, such as 3.11.2, pickle the members of an Enum by their names."""
    if not isinstance(enum, EnumMeta) or name not in enum.__members__:
        raise CheckpointError("asks for builtins.getattr, which has no place in a checkpoint; do not use this folder")
    return enum.__members__[name]
