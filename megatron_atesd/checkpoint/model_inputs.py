"""What is read of a model folder before its weights, once for all who need it: architecture, tokenizer and chat template."""

from dataclasses import dataclass
from pathlib import Path

from megatron_atesd.checkpoint.model_folder import find_hf
from megatron_atesd.config import PromptConfig
from megatron_atesd.data.prompts import PromptRenderer
from megatron_atesd.data.reveal import Rounding
from megatron_atesd.data.tokenizer import load_tokenizer, model_stop_ids
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.hf_config import read_architecture


@dataclass(frozen=True)
class ModelInputs:
    """A model without its weights.

    folder: where the weights are. hf_folder: where config.json and the tokenizer are, the same folder or its hf/.
    """

    folder: Path
    hf_folder: Path
    architecture: Architecture
    renderer: PromptRenderer


def read_model(folder: Path, prompt: PromptConfig, reveal: Rounding) -> ModelInputs:
    """The model in a Hugging Face folder or a Megatron model folder.

    Raises CheckpointError for a folder that is neither, ConversionError for a model that cannot be built, DataError or ConfigError for a
    tokenizer that makes no prompts.
    """
    hf_folder = find_hf(folder)
    architecture = read_architecture(hf_folder)
    renderer = PromptRenderer(load_tokenizer(hf_folder, architecture.vocabulary), prompt, reveal, model_stop_ids(hf_folder))
    return ModelInputs(folder, hf_folder, architecture, renderer)
