"""The frozen base under adapters: a checkpoint of adapters does not hold it, but knows it by the checksums of its weight files."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_atesd.checkpoint.hf_tensors import weight_files
from megatron_atesd.checkpoint.manifest import MANIFEST, checksums, listed_files, read_manifest
from megatron_atesd.checkpoint.reading import read_plain_values
from megatron_atesd.errors import AtesdError, CheckpointError, ConversionError
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
    if not names:
        raise CheckpointError(f"{folder}: no Hugging Face folder and no Megatron model folder; give the base of the adapters")
    rank, size = place()
    shares = agreed(lambda: checksums(folder, names[rank::size]), f"{folder} cannot be read")
    return BaseModel(str(folder.absolute()), {name: share[name] for name in names for share in shares if name in share})


def check_base(recorded: BaseModel, found: BaseModel, checkpoint: Path) -> None:
    """Raise CheckpointError unless `found` holds the weights that the adapters of `checkpoint` were trained on."""
    if recorded.sums == found.sums:
        return
    names = sorted(name for name in recorded.sums.keys() | found.sums.keys() if recorded.sums.get(name) != found.sums.get(name))
    advice = "give that model, or an unchanged copy of it"
    if not recorded.sums.keys() & found.sums.keys():
        advice = f"that was a folder with {next(iter(recorded.sums))}, and a base is known by its files: give it in the form that it had"
    raise CheckpointError(
        f"{found.path}: not the base that the adapters of {checkpoint} were trained on ({recorded.path}): {names[0]} differs; {advice}"
    )


def base_folders(record: AdapterRecord, checkpoint: Path, path: str = "") -> list[Path]:
    """Where the base of `checkpoint` may be: where it was, or in what `path`, the training's model.path, says today.

    Raises CheckpointError when neither is a folder.
    """
    there = [folder for folder in map(Path, filter(None, dict.fromkeys([record.base.path, path]))) if folder.is_dir()]
    if not there:
        also = f" nor in {path}" if path else ""
        raise CheckpointError(
            f"{checkpoint}: holds adapters alone, and the base that they were trained on is not in {record.base.path}{also}; "
            "say where it is now (model.path; for a conversion --base)"
        )
    return there


def find_base(record: AdapterRecord, checkpoint: Path, folders: Sequence[Path]) -> Path:
    """The first of `folders` that has the base's checksums; to a Megatron folder's own, its files are held by who reads them. Collective.

    Raises CheckpointError or ConversionError, as the first of them deserves, when none has.
    """
    faults: list[AtesdError] = []
    for folder in folders:
        try:
            check_base(record.base, base_model(folder), checkpoint)
        except (CheckpointError, ConversionError) as error:
            faults.append(error)
        else:
            return folder
    raise faults[0]
