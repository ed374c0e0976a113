"""The model that trains, as Hugging Face tensors one after the other: gathered over tensor parallelism, sent from their pipeline stage."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_atesd.checkpoint.name_table import Entry, name_table
from megatron_atesd.checkpoint.tensor_parts import split
from megatron_atesd.model.chunk import padded_vocabulary
from megatron_atesd.model.gpt import ADAPTERS, HiddenStateGPT
from megatron_atesd.model.lora import adapted_weights
from megatron_atesd.parallel.groups import gathered


def hf_stream(model: HiddenStateGPT) -> Iterator[tuple[str, Tensor]]:
    """(Hugging Face name, whole tensor) of every parameter, in the parameters' dtype and on their device; equal on every rank.

    Adapters that are on are merged into what is yielded, W + s·B·A; the parameters stay as they are.
    One Megatron parameter is whole at a time; what is yielded may be kept. Collective over the TP × PP ranks of a model, which have to
    exhaust it together.
    """
    mine = {name: parameter.detach() for name, parameter in model.named_parameters() if ADAPTERS not in name}
    adapted = adapted_weights(model)
    pipeline: Any = parallel_state.get_pipeline_model_parallel_group()
    stages = gathered(set(mine), pipeline) if pipeline.size() > 1 else [set(mine)]
    for entry in name_table(model.arch):
        # With tied weights the embedding is on the first stage and, under the head's name, on the last: any of them will do.
        stage, name = next((s, n) for s, names in enumerate(stages) for n in entry.megatron if n in names)
        parameter = mine.get(name) if stage == pipeline.rank() else None
        if parameter is not None and name in adapted:
            parameter = adapted[name].merged_weight()
        shards = _shards(model, entry, parameter, stage, pipeline)
        yield from zip(entry.sources, split(shards, entry, model.arch), strict=True)


def _shards(model: HiddenStateGPT, entry: Entry, parameter: Tensor | None, stage: int, pipeline: Any) -> list[Tensor]:
    """Every TP rank's part of a parameter. parameter: this rank's own, None on the other stages."""
    size = parallel_state.get_tensor_model_parallel_world_size() if entry.operation != "copy" else 1
    if parameter is None:
        shape = shard_shape(entry, size)
        parameter = torch.empty(shape, dtype=model.config.params_dtype, device=torch.cuda.current_device())
    if pipeline.size() > 1:
        parameter = parameter.contiguous()
        dist.broadcast(parameter, group=pipeline, group_src=stage)
    if size == 1:
        return [parameter]
    group: Any = parallel_state.get_tensor_model_parallel_group()
    shards = [torch.empty_like(parameter) for _ in range(size)]
    dist.all_gather(shards, parameter.contiguous(), group=group)
    return shards


def shard_shape(entry: Entry, size: int) -> tuple[int, ...]:
    """Of the parameter on one of `size` tensor-parallel ranks."""
    first, *rest = entry.shape
    if entry.operation == "copy":
        return entry.shape
    if entry.operation == "columns":
        return first, rest[0] // size
    return (padded_vocabulary(first, size) if entry.operation == "vocabulary" else first) // size, *rest
