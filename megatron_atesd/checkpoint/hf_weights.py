"""From a Hugging Face folder into the parameters of a model, at any TP × PP."""

from pathlib import Path

import torch
from megatron.core import parallel_state
from torch import Tensor

from megatron_atesd.checkpoint.hf_tensors import HfWeights
from megatron_atesd.checkpoint.name_table import EMBEDDING, HEAD, Entry, name_table
from megatron_atesd.checkpoint.tensor_parts import join, take
from megatron_atesd.errors import ConversionError
from megatron_atesd.model.gpt import HiddenStateGPT


def load_hf_weights(model: HiddenStateGPT, folder: Path) -> None:
    """Fill this rank's parameters from the safetensors of `folder`, in the parameters' own dtype.

    Works at every TP × PP: each rank reads only its slices, one tensor at a time. All names and shapes are checked first, on every rank.
    Raises ConversionError naming the tensor or file that is missing, unknown, damaged or of a wrong shape.
    """
    source = HfWeights(folder, model.arch)
    entries = {name: entry for entry in name_table(model.arch) for name in entry.megatron}
    size, rank = parallel_state.get_tensor_model_parallel_world_size(), parallel_state.get_tensor_model_parallel_rank()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in entries:
                raise ConversionError(f"Megatron parameter {name} has no counterpart in a Hugging Face {model.arch.family} model")
            parameter.copy_(_parameter(source, entries[name], model, size, rank))
            if source.has_second_head and EMBEDDING in entries[name].sources:
                shape = entries[name].sources[EMBEDDING]
                source.check_second_head(*(take(source.tensors[key], shape, "vocabulary", size, rank) for key in (HEAD, EMBEDDING)))


def _parameter(source: HfWeights, entry: Entry, model: HiddenStateGPT, size: int, rank: int) -> Tensor:
    if entry.operation == "qkv" and model.arch.query_groups % size:
        raise ConversionError(f"{model.arch.query_groups} query groups cannot be divided by tensor-parallel size {size}; choose a divisor")
    try:
        parts = [take(source.tensors[name], shape, entry.operation, size, rank) for name, shape in entry.sources.items()]
    except ValueError as error:
        raise ConversionError(f"{entry.megatron[0]}: {error}; choose a tensor-parallel size that divides it") from error
    return join(parts, entry.operation, model.arch.query_groups // size)
