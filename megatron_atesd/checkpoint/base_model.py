"""The frozen base under adapters: a checkpoint of adapters does not hold it, but knows it by the checksums of its weight files."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_atesd.checkpoint.hf_tensors import weight_files
from megatron_atesd.checkpoint.manifest import MANIFEST, checksums, listed_files, read_manifest
from megatron_atesd.checkpoint.reading import read_plain_values
from megatron_atesd.errors import CheckpointError
from megatron_atesd.model.lora import LoraSettings
from megatron_atesd.model.megatron_config import DTYPES
from megatron_atesd.parallel.agreement import agreed, place

RECORD = "lora"  # name of an AdapterRecord among a checkpoint's plain values


@dataclass(frozen=True)
class BaseModel:
    """path: of the model folder, absolute, as it was when adapters were trained on it. sums: SHA-256 of each of its weight files."""

    path: str
    sums: dict[str, str]


@dataclass(frozen=True)
class AdapterRecord:
    """What a checkpoint of adapters says beside their tensors."""

    settings: LoraSettings
    base: BaseModel

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        settings = asdict(self.settings)
        dtype = next(name for name, known in DTYPES.items() if known == self.settings.dtype)
        return {RECORD: {"settings": settings | {"dtype": dtype, "targets": list(self.settings.targets)}, "base": asdict(self.base)}}


def adapter_record(folder: Path) -> AdapterRecord | None:
    """Of a checkpoint that holds adapters; None of one that holds a whole model. Raises CheckpointError when it is no checkpoint."""
    return record_of(read_plain_values(folder))


def record_of(plain: Mapping[str, Any]) -> AdapterRecord | None:
    """The same, of a checkpoint's plain values."""
    if (found := plain.get(RECORD)) is None:
        return None
    settings = found["settings"]
    known = settings | {"dtype": DTYPES[settings["dtype"]], "targets": tuple(settings["targets"])}
    return AdapterRecord(LoraSettings(**known), BaseModel(**found["base"]))


def base_model(folder: Path) -> BaseModel:
    """The model folder (Hugging Face or Megatron) as a base. Reads its weight files, unless SHA256SUMS tells. Collective.

    Raises CheckpointError, on all ranks, for a file that cannot be read.
    """
    if (folder / "config.json").is_file():
        names = weight_files(folder)
    elif (folder / MANIFEST).is_file():
        return BaseModel(str(folder.absolute()), {name: sha for name, sha in read_manifest(folder).items() if name.startswith("weights/")})
    else:
        names = [name for name in listed_files(folder) if name.startswith("weights/")]
    rank, size = place()
    shares = agreed(lambda: checksums(folder, names[rank::size]), f"{folder} cannot be read")
    return BaseModel(str(folder.absolute()), {name: share[name] for name in names for share in shares if name in share})


def check_base(recorded: BaseModel, found: BaseModel, checkpoint: Path) -> None:
    """Raise CheckpointError unless `found` holds the weights that the adapters of `checkpoint` were trained on."""
    if recorded.sums == found.sums:
        return
    names = sorted(name for name in recorded.sums.keys() | found.sums.keys() if recorded.sums.get(name) != found.sums.get(name))
    raise CheckpointError(
        f"{found.path}: not the base that the adapters of {checkpoint} were trained on ({recorded.path}): {names[0]} differs; "
        "give that model, or an unchanged copy of it"
    )


def base_folder(record: AdapterRecord, checkpoint: Path, given: Path | None = None) -> Path:
    """Where the base of `checkpoint` is: in the folder that is `given`, else where it was. Raises CheckpointError when it is not there."""
    folder = given or Path(record.base.path)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no folder here, but the adapters of {checkpoint} belong to the base in it; say where it is now")
    return folder


def base_of(folder: Path, path: str) -> Path | None:
    """The folder of the base under the adapters of a model folder: where it was, else what `path`, the training's model.path, says today.

    None for a whole model. Raises CheckpointError when there is no such folder. Its weights are not looked at.
    """
    record = adapter_record(folder) if (folder / "weights").is_dir() else None
    if record is None:
        return None
    return base_folder(record, folder, None if Path(record.base.path).is_dir() or not path else Path(path))


def find_base(record: AdapterRecord, checkpoint: Path, given: Path | None = None) -> Path:
    """`base_folder`, once its weights are known to be the base's. Raises CheckpointError when they are not. Collective."""
    folder = base_folder(record, checkpoint, given)
    check_base(record.base, base_model(folder), checkpoint)
    return folder
