"""Model folders and checkpoints, independent of TP × PP × DP (megatron.core dist_checkpointing, format torch_dist).

A model folder, and each `checkpoints/step_N/`, is `weights/` (torch_dist) beside `hf/` (config.json, tokenizer, generation config) and
SHA256SUMS.
"""

from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing

from megatron_atesd.checkpoint import plain_values
from megatron_atesd.checkpoint.manifest import MANIFEST, check_files, read_manifest
from megatron_atesd.checkpoint.safe_pickle import guarded
from megatron_atesd.checkpoint.saving import FolderSave
from megatron_atesd.data.notice import warn_once
from megatron_atesd.errors import CheckpointError
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.trained import MODEL_PREFIX
from megatron_atesd.parallel.agreement import agreed, place


def model_state(model: HiddenStateGPT) -> dict[str, Any]:
    """Sharded state of the weights alone, under the prefix `model.`."""
    return model.sharded_state_dict(prefix=MODEL_PREFIX)


def write_folder(final: Path, state: dict[str, Any], hf_files: Path) -> None:
    """Write `final` whole or not at all: weights/ from the sharded `state`, hf/ = `hf_files` without its weights. Collective.

    Raises CheckpointError, on all ranks, when it cannot be written.
    """
    FolderSave(final, state, hf_files).finished(wait=True)


def check_folder(folder: Path) -> None:
    """Hold every file of `folder` to SHA256SUMS, shared out over the ranks. Collective.

    Raises CheckpointError, on all ranks, naming what is missing or damaged.
    """

    def check_share() -> None:
        rank, size = place()
        sums = read_manifest(folder)
        largest_first = sorted(sums, key=lambda name: (-(folder / name).stat().st_size, name))
        check_files(folder, {name: sums[name] for name in largest_first[rank::size]})

    agreed(check_share, f"{folder} cannot be read")


def check_model_folder(folder: Path) -> None:
    """`check_folder`, except that a Megatron folder without checksums passes with a warning (older versions wrote none).

    A Hugging Face folder never has them.
    """
    if (folder / MANIFEST).exists():
        check_folder(folder)
    elif (folder / "weights").is_dir() and place()[0] == 0:
        warn_once(f"{folder} has no {MANIFEST}, so it is used without a check for damage: convert it again to have one")


def read_plain_values(folder: Path) -> dict[str, Any]:
    """What `folder` holds beside tensors. Raises CheckpointError when it is not a model folder."""
    return plain_values.read_plain_values(_weights(folder))


def read_folder(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Fill the sharded `state` from `folder`; returns it with the plain values that were saved beside it. Collective.

    Raises CheckpointError when the folder is not a model folder or lacks a tensor that `state` asks for.
    """
    weights = _weights(folder)
    plain_values.check_common(weights)
    with guarded(weights):
        loaded = dist_checkpointing.load(state, str(weights))
    assert isinstance(loaded, dict)  # a tuple only for strict modes that report
    return loaded


def _weights(folder: Path) -> Path:
    if not (folder / "weights" / "metadata.json").is_file():
        raise CheckpointError(
            f"{folder}: no Megatron weights here (weights/metadata.json); convert with checkpoints_convert/hf_to_megatron.py"
        )
    return folder / "weights"
