"""The model of a run as it starts: its weights, and the adapters that learn instead of them, if the run has adapters."""

from pathlib import Path

from megatron_atesd.checkpoint.base_model import AdapterRecord, base_model
from megatron_atesd.checkpoint.model_folder import load_model_weights
from megatron_atesd.checkpoint.peft_folder import load_peft
from megatron_atesd.checkpoint.reading import check_model_folder
from megatron_atesd.config import TrainConfig, naming_section
from megatron_atesd.model.gpt import HiddenStateGPT, build_model
from megatron_atesd.model.lora import add_adapters
from megatron_atesd.model.trained import lora_settings
from megatron_atesd.train.checks import TrainingInputs
from megatron_atesd.train.finite import check_weights


def start_student(config: TrainConfig, inputs: TrainingInputs, goes_on: bool) -> tuple[HiddenStateGPT, AdapterRecord | None]:
    """This rank's part of the model, and what a checkpoint says of its adapters (None: all weights learn). Collective.

    goes_on: the values of adapters come from a checkpoint afterwards.
    Raises CheckpointError or ConversionError for weights that are damaged or do not fit.
    """
    folder: Path = inputs.model.folder
    with naming_section("megatron", config.megatron):
        model = build_model(inputs.model.architecture, inputs.megatron, config.parallel.packed)
    check_model_folder(folder)
    load_model_weights(model, folder)
    check_weights(model.named_parameters(), folder)
    if not config.lora.rank:
        return model, None
    settings = lora_settings(config.lora, config.model.dtype)
    add_adapters(model, settings, config.run.seed)
    if config.lora.start and not goes_on:
        load_peft(model, Path(config.lora.start))
    return model, AdapterRecord(settings, base_model(folder))
