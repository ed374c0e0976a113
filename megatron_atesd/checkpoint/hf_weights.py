"""Between a Hugging Face folder and the parameters of a model: in at any TP × PP, out at TP = PP = 1."""

from collections.abc import Iterator
from pathlib import Path

import torch
from megatron.core import parallel_state
from torch import Tensor

from megatron_atesd.checkpoint.hf_tensors import HfWeights, check_finite
from megatron_atesd.checkpoint.name_table import EMBEDDING, HEAD, Entry, name_table
from megatron_atesd.checkpoint.tensor_parts import join, split, take
from megatron_atesd.errors import ConversionError
from megatron_atesd.model.gpt import HiddenStateGPT


def load_hf_weights(model: HiddenStateGPT, folder: Path) -> None:
    """Fill this rank's parameters from the safetensors of `folder`, in the parameters' own dtype.

    Works at every TP × PP: each rank reads only its slices, one tensor at a time. All names and shapes are checked first, on every rank.
    Raises ConversionError naming the tensor or file that is missing, unknown, damaged or of a wrong shape.
    """
    source = HfWeights(folder)
    source.check(model.arch)
    entries = {name: entry for entry in name_table(model.arch) for name in entry.megatron}
    size, rank = parallel_state.get_tensor_model_parallel_world_size(), parallel_state.get_tensor_model_parallel_rank()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in entries:
                raise ConversionError(f"Megatron parameter {name} has no counterpart in a Hugging Face {model.arch.family} model")
            parameter.copy_(_parameter(source, entries[name], model, size, rank))
            if model.arch.tied and HEAD in source.tensors and EMBEDDING in entries[name].sources:
                _check_redundant_head(source, entries[name].sources[EMBEDDING], size, rank)


def hf_tensors(model: HiddenStateGPT) -> Iterator[tuple[str, Tensor]]:
    """Every Hugging Face name with its tensor, in the parameters' dtype, contiguous and with memory of its own.

    Raises ConversionError when the model is divided (TP or PP above 1) has an unknown parameter, or a weight that is no number.
    """
    config = model.config
    if config.tensor_model_parallel_size * config.pipeline_model_parallel_size != 1:
        raise ConversionError("a model is exported by one process; load its checkpoint at TP = PP = 1")
    parameters = dict(model.named_parameters())
    for entry in name_table(model.arch):
        name = next(name for name in entry.megatron if name in parameters)
        parts = split(parameters.pop(name).detach(), entry.operation, model.arch.query_groups, model.arch.head_size, model.arch.vocabulary)
        for source, part in zip(entry.sources, parts, strict=True):
            check_finite(part, source)
            yield source, part
    if parameters:
        raise ConversionError(f"Megatron parameter {next(iter(parameters))} has no counterpart in a Hugging Face {model.arch.family} model")


def _parameter(source: HfWeights, entry: Entry, model: HiddenStateGPT, size: int, rank: int) -> Tensor:
    if entry.operation == "qkv" and model.arch.query_groups % size:
        raise ConversionError(f"{model.arch.query_groups} query groups cannot be divided by tensor-parallel size {size}; choose a divisor")
    try:
        parts = [take(source.tensors[name], shape, entry.operation, size, rank) for name, shape in entry.sources.items()]
    except ValueError as error:
        raise ConversionError(f"{entry.megatron[0]}: {error}; choose a tensor-parallel size that divides it") from error
    return join(parts, entry.operation, model.arch.query_groups // size)


def _check_redundant_head(source: HfWeights, shape: tuple[int, ...], size: int, rank: int) -> None:
    """A tied model may carry its head a second time: this rank's rows of it must equal the embedding's."""
    head, embedding = (take(source.tensors[name], shape, "vocabulary", size, rank) for name in (HEAD, EMBEDDING))
    if not torch.equal(head.to(embedding.dtype), embedding):
        raise source.head_differs()
