"""A checkpoint of LoRA adapters, out: as a folder for peft, or merged into the base that they were trained on."""

from functools import partial
from pathlib import Path
from typing import Any

from checkpoints_convert.command import choose_dtype, dtype_name
from checkpoints_convert.models import adapted_model, merged_model, rounded, transformers_model, transformers_model_of, with_peft
from checkpoints_convert.output import finished_folder
from checkpoints_convert.peft_out import write_peft
from checkpoints_convert.sources import MergedSource, model_source
from checkpoints_convert.stream import write_hf
from checkpoints_convert.verify import verify
from megatron_atesd.checkpoint.adapter_tensors import StoredAdapters
from megatron_atesd.checkpoint.base_model import AdapterRecord, base_folders, find_base
from megatron_atesd.checkpoint.hf_files import copy_hf_files, state_dtype
from megatron_atesd.checkpoint.model_folder import find_hf
from megatron_atesd.checkpoint.torch_dist import StoredTensors
from megatron_atesd.distill.teacher import PREFIX as TEACHER_PREFIX
from megatron_atesd.errors import CheckpointError
from megatron_atesd.logs import tell
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.trained import ADAPTER_PREFIX


class AdapterExport:
    """weights: student or teacher. given: where the base is now; None where it was.

    Raises CheckpointError for a checkpoint that lacks the adapters, for a base that is not there, or for another one.
    """

    def __init__(self, checkpoint: Path, record: AdapterRecord, weights: str, architecture: Architecture, given: Path | None) -> None:
        self._checkpoint, self._record, self._weights, self._architecture = checkpoint, record, weights, architecture
        self._given = given
        self._prefix = TEACHER_PREFIX if weights == "teacher" else ADAPTER_PREFIX
        if weights == "teacher" and not StoredTensors(checkpoint / "weights", TEACHER_PREFIX).shapes():
            raise CheckpointError(
                f"{checkpoint}: holds no adapters of a teacher: with distill.teacher initial it is the base itself ({record.base.path}), "
                "with live the student; take that model, or export --weights student"
            )
        self._adapters = StoredAdapters(checkpoint, self._prefix, record.settings, architecture)

    def write_peft(self, out: Path, asked_dtype: str, tolerance: float | None) -> None:
        """The folder `out`, whole or not at all. The base is looked for when it was given, and for the comparison of `tolerance`."""
        base = self._base() if self._given or tolerance is not None else None
        dtype = choose_dtype(asked_dtype, self._adapters.dtypes(), self._checkpoint)
        self._say(f"adapters, writing {dtype_name(dtype)}")
        with finished_folder(out) as staging:
            named = str((base or Path(self._record.base.path)).absolute())
            write_peft(self._adapters, staging, named, find_hf(self._checkpoint), dtype)
            if base is not None and tolerance is not None:
                hf_files = find_hf(base)
                verify(
                    lambda: with_peft(self._theirs(base), staging), lambda: rounded(self._ours(base), dtype, ".lora."), hf_files, tolerance
                )
        tell(f"finished: {out}")
        if any(name.startswith("weights/") for name in self._record.base.sums):
            tell(
                f"its base_model_name_or_path is {named}, a Megatron model folder: peft and vLLM want its Hugging Face folder named instead"
            )

    def write_merged(self, out: Path, asked_dtype: str, tolerance: float | None, shard_bytes: int) -> None:
        """The Hugging Face model folder `out`, whole or not at all."""
        base = self._base()
        source = MergedSource(model_source(base, self._architecture), self._adapters)
        dtype = choose_dtype(asked_dtype, source.dtypes(), base)
        self._say(f"merged into {base}, writing {dtype_name(dtype)}")
        with finished_folder(out) as staging:
            copy_hf_files(find_hf(self._checkpoint), staging)
            state_dtype(staging / "config.json", dtype)
            write_hf(source, self._architecture, staging, dtype, shard_bytes)
            if tolerance is not None:
                verify(partial(transformers_model, staging), lambda: rounded(merged_model(self._ours(base)), dtype), staging, tolerance)
        tell(f"finished: {out}")

    def _base(self) -> Path:
        folders = [self._given] if self._given else base_folders(self._record, self._checkpoint)
        return find_base(self._record, self._checkpoint, folders)

    def _theirs(self, base: Path) -> Any:
        """The base in transformers. It has no folder to load a Megatron model folder from."""
        if (base / "config.json").is_file():
            return transformers_model(base)
        return transformers_model_of(model_source(base, self._architecture), find_hf(base))

    def _ours(self, base: Path) -> HiddenStateGPT:
        return adapted_model(self._checkpoint, self._prefix, self._record, base, self._architecture)

    def _say(self, doing: str) -> None:
        settings, layers = self._record.settings, self._architecture.layers
        lora = f"LoRA of rank {settings.rank} on {', '.join(settings.targets)}"
        tell(f"reading {self._checkpoint}: {self._weights}, {lora}, {self._architecture.family}, {layers} layers, {doing}")
