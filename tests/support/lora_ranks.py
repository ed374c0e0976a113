"""One update's passes of a model with adapters on one rank of any layout, and the whole tensors from what the ranks found."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region, gather_from_tensor_model_parallel_region
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.config import ScheduleConfig
from megatron_atesd.model.gpt import HiddenStateGPT, build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.lora import LoraSettings, adapter_parameters, adapters_off, add_adapters
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.model.micro_batches import MicroBatch
from megatron_atesd.model.schedule import model_batches, run_schedule
from megatron_atesd.parallel.context import context_place
from megatron_atesd.parallel.groups import data_parallel_place
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.train.optimizer import build_optimization
from tests.support.convert_models import SIZES
from tests.support.distill_case import RECOMPUTE
from tests.support.lora_case import IDS_BS, filled, loss_weights
from tests.support.te_stand_ins import stand_in


@dataclass(frozen=True)
class Layout:
    """What is left of the ranks is data parallelism. te: with stand-ins for Transformer Engine's layers."""

    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1
    sequence: bool = False
    context: int = 1
    packed: bool = False
    tokens: int = 1
    recompute: str = ""
    te: bool = False


@dataclass(frozen=True)
class Found:
    """What one rank has: its part of A's first values and of the gradients, by PEFT's names, and where a part lies in the whole: its
    rank and dimension, None for one that is whole. Logits on the last stage, of this rank's sequences by their number. Collectives of a
    forward with and without adapters, and its micro-batches."""

    first: dict[str, Tensor]
    gradients: dict[str, Tensor]
    place: dict[str, tuple[int, int] | None]
    logits_SV: dict[int, Tensor]
    collectives: tuple[int, int]
    batches: int


def lora_steps(layouts: list[Layout], folder: Path, settings: LoraSettings) -> list[Found]:
    dist.init_process_group("gloo")
    return [lora_step(layout, folder, settings) for layout in layouts]


def lora_step(layout: Layout, folder: Path, settings: LoraSettings) -> Found:
    with parallel_session(layout.tensor, layout.pipeline, virtual_pipeline=layout.virtual, context=layout.context):
        model = built(layout, folder)
        if layout.te:
            stand_in(model)
        add_adapters(model, settings)
        parameters = adapter_parameters(model)
        first = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        place = {name: _place(parameter) for name, parameter in parameters.items()}
        fill(model, "lora_B")
        optimization = build_optimization(model, {"lr": 1e-3}, {}, ScheduleConfig(), 10)
        optimization.zero_grad()
        logits_SV = _pass(model, optimization.wrapped, layout, forward_only=False)
        gradients = {name: parameter.main_grad.clone() for name, parameter in parameters.items()}  # pyright: ignore[reportAttributeAccessIssue]
        on = _collectives(model, layout)
        with adapters_off(model):
            off = _collectives(model, layout)
        return Found(first, gradients, place, logits_SV, (on, off), len(_batches(model, layout)))


def built(layout: Layout, folder: Path, dtype: str = "fp32") -> HiddenStateGPT:
    arch = read_architecture(folder)
    sizes = (layout.tensor, layout.pipeline, layout.sequence)
    config = transformer_config(arch, *sizes, dtype, RECOMPUTE[layout.recompute], layout.virtual, context=layout.context)
    model = build_model(arch, config, layout.packed)
    load_hf_weights(model, folder)
    return model


@torch.no_grad()
def fill(model: HiddenStateGPT, factors: str = "") -> None:
    """Give A and B, or the factor named, this rank's part of the values that lora_case.filled has for the whole."""
    for name, parameter in adapter_parameters(model).items():
        if factors in name:
            parameter.copy_(_part(filled(name, _whole_shape(parameter)), _place(parameter)))


def _place(parameter: Any) -> tuple[int, int] | None:
    return (parallel_state.get_tensor_model_parallel_rank(), parameter.partition_dim) if parameter.tensor_model_parallel else None


def _whole_shape(parameter: Any) -> tuple[int, ...]:
    shape = list(parameter.shape)
    if parameter.tensor_model_parallel:
        shape[parameter.partition_dim] *= parallel_state.get_tensor_model_parallel_world_size()
    return tuple(shape)


def _part(whole: Tensor, place: tuple[int, int] | None) -> Tensor:
    return whole if place is None else whole.chunk(parallel_state.get_tensor_model_parallel_world_size(), place[1])[place[0]]


def _batches(model: HiddenStateGPT, layout: Layout) -> list[MicroBatch]:
    return model_batches(model, [(row[:3], row[3:]) for row in _rows(len(IDS_BS)).values()], layout.tokens)


def _rows(count: int) -> dict[int, list[int]]:
    """This data-parallel rank's sequences."""
    return {number: IDS_BS[number].tolist() for number in range(*_share(count))}


def _share(count: int) -> tuple[int, int, int]:
    rank, size = data_parallel_place()
    return rank, count, size


def _pass(model: HiddenStateGPT, wrapped: torch.nn.Module, layout: Layout, forward_only: bool) -> dict[int, Tensor]:
    """Logits [S, V] of this rank's sequences on the last stage. The loss is the mean of lora_case.loss_of both sequences; of the positions,
    a context-parallel rank has its share."""
    numbers, (rank, size), weights_BSV = list(_rows(len(IDS_BS))), context_place(), loss_weights((*IDS_BS.shape, SIZES["vocab_size"]))
    length = IDS_BS.shape[1]

    def last_stage(batch: MicroBatch, hidden_BSH: Tensor) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
        parts = copy_to_tensor_model_parallel_region(hidden_BSH) @ model.head_weight().T
        logits_TV = gather_from_tensor_model_parallel_region(parts)[..., : SIZES["vocab_size"]].flatten(0, 1)
        starts = batch.bounds or range(0, len(logits_TV), batch.ids_BS.shape[1])
        found = {numbers[member]: logits_TV[start : start + length] for start, member in zip(starts, batch.members, strict=False)}
        terms = [(logits_SV[rank::size] * weights_BSV[number, rank::size]).sum() for number, logits_SV in found.items()]
        loss = torch.stack([logits_TV.sum() * 0, *terms]).sum()
        return loss, torch.tensor(len(found) if rank == 0 else 0), {number: logits_SV.detach() for number, logits_SV in found.items()}

    found = run_schedule(wrapped, _batches(model, layout), last_stage, forward_only)
    return {number: logits_SV for batch in found for number, logits_SV in batch.items()}


def _collectives(model: HiddenStateGPT, layout: Layout) -> int:
    """How many a forward makes on this rank."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as record:
        _pass(model, model, layout, forward_only=True)
    return sum(event.count for event in record.key_averages() if event.key.startswith("c10d::"))


def joined(found: Sequence[Found], field: str) -> dict[str, Tensor]:
    """The whole tensors of all ranks' parts. One that is whole on several ranks must be the same there."""
    parts: dict[str, dict[tuple[int, int] | None, Tensor]] = {}
    for rank in found:
        for name, value in getattr(rank, field).items():
            known = parts.setdefault(name, {}).setdefault(rank.place[name], value)
            assert torch.equal(known, value), name
    return {name: _joined(of) for name, of in parts.items()}


def _joined(parts: dict[tuple[int, int] | None, Tensor]) -> Tensor:
    if None in parts:
        return parts[None]
    places = sorted(place for place in parts if place is not None)
    return torch.cat([parts[place] for place in places], dim=places[0][1])
