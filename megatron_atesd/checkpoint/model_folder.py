"""What a model path may be: a Hugging Face folder, a Megatron model folder (`weights/` beside `hf/`), for export also a run directory."""

from pathlib import Path

from megatron_atesd.checkpoint.base_model import adapter_record, base_folders, find_base
from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.checkpoint.peft_config import CONFIG as PEFT_CONFIG
from megatron_atesd.checkpoint.reading import check_model_folder, model_state, read_folder
from megatron_atesd.checkpoint.run_checkpoints import choose, step_folders
from megatron_atesd.errors import CheckpointError
from megatron_atesd.logs import tell
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.lora import add_adapters
from megatron_atesd.model.trained import ADAPTER_PREFIX, MODEL_PREFIX, load_trained_state, trained_state
from megatron_atesd.parallel.agreement import place


def find_hf(folder: Path) -> Path:
    """Where config.json and the tokenizer are: a Hugging Face folder itself, or the hf/ beside the weights/ of a Megatron model folder.

    Raises CheckpointError when `folder` is neither. A run directory is none, also where its model was exported into its hf/.
    """
    if (folder / "config.json").is_file():
        return folder
    if (folder / "weights").is_dir() and (folder / "hf" / "config.json").is_file():
        return folder / "hf"
    exported = f", or the exported {folder / 'hf'}" if (folder / "hf" / "config.json").is_file() else ""
    if (folder / PEFT_CONFIG).is_file():
        raise CheckpointError(
            f"{folder}: a LoRA adapter, not a model; give its base, and it as lora.start of a training or --adapter of hf_to_megatron.py"
        )
    if steps := step_folders(_checkpoints(folder)):
        raise CheckpointError(f"{folder}: a run directory, not a model; give one of its checkpoints, such as {steps[0]}{exported}")
    raise CheckpointError(
        f"{folder}: neither a Hugging Face folder (config.json) nor a Megatron model folder (weights/ and hf/config.json); "
        f"give the folder of a downloaded model or the output of checkpoints_convert/hf_to_megatron.py{exported}"
    )


def find_model_folder(path: Path) -> Path:
    """The Megatron model folder that `path` means: itself (also a checkpoint step_N), or the newest valid checkpoint of a run
    directory; its files are checked.

    Raises CheckpointError when there is none, or a file of it is damaged.
    """
    if (path / "weights").is_dir():
        check_model_folder(path)
        return path
    if (path / "config.json").is_file():
        raise CheckpointError(f"{path}: already a Hugging Face folder; give a Megatron model folder (weights/ and hf/) or a run directory")
    chosen = choose(_checkpoints(path))
    if chosen.folder is None:
        there = ", ".join(step.name for step in step_folders(path.parent))
        raise CheckpointError(
            f"{path}: neither a Megatron model folder (weights/ and hf/) nor a run directory with a checkpoint; give the output of "
            f"hf_to_megatron.py, a run.dir, or a checkpoint" + (f" ({path.parent} holds {there})" if there else "")
        )
    if place()[0] == 0:
        tell(f"using {chosen.folder} ({chosen.why})")
    return chosen.folder


def _checkpoints(run: Path) -> Path:
    """checkpoints/ of a run directory, which may be given itself."""
    return run if run.name == "checkpoints" else run / "checkpoints"


def load_model_weights(model: HiddenStateGPT, folder: Path, base: str = "") -> None:
    """Fill the model of this rank from a Hugging Face folder or a Megatron model folder, at any TP × PP. Collective.

    A checkpoint of adapters gives its model the base that they were trained on, and them. base: where that is, if not where it was.
    Raises ConversionError for Hugging Face weights that do not fit, CheckpointError for anything else.
    """
    if (folder / "config.json").is_file():
        load_hf_weights(model, folder)
        return
    find_hf(folder)
    if (record := adapter_record(folder)) is not None:
        frozen = find_base(record, folder, base_folders(record, folder, base))
        check_model_folder(frozen)
        load_model_weights(model, frozen)
        add_adapters(model, record.settings)
        load_trained_state(model, read_folder(folder, {"model": trained_state(model, ADAPTER_PREFIX)})["model"])
        return
    loaded = read_folder(folder, model_state(model))
    model.load_state_dict({name.removeprefix(MODEL_PREFIX): value for name, value in loaded.items() if name.startswith(MODEL_PREFIX)})
