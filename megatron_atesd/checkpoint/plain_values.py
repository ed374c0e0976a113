"""What a torch_dist folder holds beside tensors, in both forms that megatron.core reads, whichever version writes it.

The file common.pt: up to 0.18 megatron.core reads nothing else, and 0.19 reads it first. The object `common_state` in .distcp: what 0.19
itself writes, which is to stay when it reads the file no more.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from megatron.core import __version__
from megatron.core.dist_checkpointing import ShardedObject, load_common_state_dict
from packaging.version import Version

from megatron_atesd.checkpoint.safe_pickle import FORMAT, guarded
from megatron_atesd.errors import CheckpointError

COMMON_FILE = "common.pt"
READS_OBJECT = Version(__version__).release >= (0, 19)


def common_object(plain: Mapping[str, Any], rank: int) -> ShardedObject:
    """The plain values as `rank`'s part of a sharded state; rank 0 is the one that stores them (as dist_checkpointing.save of 0.19)."""
    return ShardedObject(key="common_state", data=plain, global_shape=(1,), global_offset=(0,), replica_id=rank)


COMMON_OBJECT = common_object({}, 0).unique_key


def write_common_file(weights: Path, plain: Mapping[str, Any]) -> None:
    """Raises OSError or RuntimeError when it cannot be written."""
    torch.save(plain, weights / COMMON_FILE)


def write_format(weights: Path) -> None:
    """metadata.json, which says that the folder is whole; it comes last. Raises OSError."""
    (weights / "metadata.json").write_text(json.dumps(FORMAT), encoding="utf-8")


def read_plain_values(weights: Path) -> dict[str, Any]:
    """Raises CheckpointError when `weights` is no torch_dist folder, damaged, or holds more than plain values and tensors."""
    check_common(weights)
    with guarded(weights):
        plain: Any = load_common_state_dict(str(weights))
    if not isinstance(plain, dict):
        raise CheckpointError(f"{weights}: its plain values are no dict but {type(plain).__name__}; use another checkpoint")
    return plain


def check_common(weights: Path) -> None:
    """Raise CheckpointError where megatron.core finds no plain values in `weights`, in the form that its version reads."""
    file = weights / COMMON_FILE
    if os.path.lexists(file) and not file.is_file():
        raise CheckpointError(f"{file}: is no file that can be read; use another checkpoint")
    if not READS_OBJECT and not file.exists():
        raise CheckpointError(
            f"{weights}: has no {COMMON_FILE}; if megatron.core 0.19 or later wrote it, use that version, else another checkpoint"
        )
