"""LoRA over tensor, sequence and pipeline parallelism: logits, gradients and first values are one process's, with no collective more."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
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
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.train.optimizer import build_optimization
from tests.support.convert_models import SIZES, save_model
from tests.support.distill_case import RECOMPUTE
from tests.support.launch import run_distributed
from tests.support.lora_case import IDS_BS, assert_same, filled, loss_of, merged_reference

SETTINGS = LoraSettings(rank=4, alpha=6.0)


@dataclass(frozen=True)
class Layout:
    tensor: int = 1
    pipeline: int = 1
    sequence: bool = False
    recompute: str = ""


@dataclass(frozen=True)
class Found:
    """What one rank has: its part of A's first values and of the gradients, by PEFT's names, and where a part lies in the whole: its
    rank and dimension, None for one that is whole. Logits on the last stage; collectives of a forward with and without adapters."""

    first: dict[str, Tensor]
    gradients: dict[str, Tensor]
    place: dict[str, tuple[int, int] | None]
    logits_BSV: Tensor | None
    collectives: tuple[int, int]


def lora_steps(layouts: list[Layout], folder: Path) -> list[Found]:
    dist.init_process_group("gloo")
    return [lora_step(layout, folder) for layout in layouts]


def lora_step(layout: Layout, folder: Path) -> Found:
    with parallel_session(layout.tensor, layout.pipeline):
        arch = read_architecture(folder)
        sizes = (layout.tensor, layout.pipeline, layout.sequence)
        model = build_model(arch, transformer_config(arch, *sizes, "fp32", RECOMPUTE[layout.recompute]))
        load_hf_weights(model, folder)
        add_adapters(model, SETTINGS)
        parameters = adapter_parameters(model)
        first = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        place = {name: _place(parameter) for name, parameter in parameters.items()}
        with torch.no_grad():
            for name, parameter in parameters.items():
                if "lora_B" in name:
                    parameter.copy_(_part(filled(name, _whole_shape(parameter)), place[name]))
        optimization = build_optimization(model, {"lr": 1e-3}, {}, ScheduleConfig(), 10)
        optimization.zero_grad()
        logits = _pass(model, optimization.wrapped, forward_only=False)
        gradients = {name: parameter.main_grad.clone() for name, parameter in parameters.items()}  # pyright: ignore[reportAttributeAccessIssue]
        on = _collectives(model)
        with adapters_off(model):
            off = _collectives(model)
        return Found(first, gradients, place, torch.cat(logits) if logits else None, (on, off))


def _place(parameter: Any) -> tuple[int, int] | None:
    return (parallel_state.get_tensor_model_parallel_rank(), parameter.partition_dim) if parameter.tensor_model_parallel else None


def _whole_shape(parameter: Any) -> tuple[int, ...]:
    shape = list(parameter.shape)
    if parameter.tensor_model_parallel:
        shape[parameter.partition_dim] *= parallel_state.get_tensor_model_parallel_world_size()
    return tuple(shape)


def _part(whole: Tensor, place: tuple[int, int] | None) -> Tensor:
    return whole if place is None else whole.chunk(parallel_state.get_tensor_model_parallel_world_size(), place[1])[place[0]]


def _pass(model: HiddenStateGPT, wrapped: torch.nn.Module, forward_only: bool) -> list[Tensor]:
    """One sequence a micro-batch; gives their logits on the last stage. The loss is a share of loss_of both sequences'."""
    number = iter(range(len(IDS_BS)))

    def last_stage(batch: MicroBatch, hidden_BSH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = copy_to_tensor_model_parallel_region(hidden_BSH) @ model.head_weight().T
        logits_BSV = gather_from_tensor_model_parallel_region(parts)[..., : SIZES["vocab_size"]]
        both = [torch.zeros_like(logits_BSV), torch.zeros_like(logits_BSV)]
        both[next(number)] = logits_BSV
        return loss_of(torch.cat(both)), torch.tensor(1), logits_BSV.detach()

    batches = model_batches(model, [(row[:3], row[3:]) for row in IDS_BS.tolist()], 1)
    return run_schedule(wrapped, batches, last_stage, forward_only)


def _collectives(model: HiddenStateGPT) -> int:
    """How many a forward makes on this rank."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as record:
        _pass(model, model, forward_only=True)
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


LAYOUTS = {
    2: [Layout(tensor=2), Layout(tensor=2, sequence=True, recompute="full"), Layout(pipeline=2), Layout(pipeline=2, recompute="full")],
    4: [Layout(tensor=2, pipeline=2, sequence=True)],
}


@pytest.mark.parametrize("ranks", LAYOUTS)
def test_adapters_are_one_process_s_at_every_layout(tmp_path: Path, ranks: int) -> None:
    save_model(tmp_path)
    alone = lora_step(Layout(), tmp_path)
    whole = {name: filled(name, value.shape) if "lora_B" in name else value for name, value in alone.first.items()}
    logits_BSV, gradients = merged_reference(tmp_path, whole, SETTINGS.scaling)
    gradients = {name: gradient / len(IDS_BS) for name, gradient in gradients.items()}  # of the mean of two losses
    assert alone.logits_BSV is not None
    assert_same(alone.gradients | {"logits": alone.logits_BSV}, gradients | {"logits": logits_BSV})
    for layout, found in zip(LAYOUTS[ranks], zip(*run_distributed(lora_steps, ranks, LAYOUTS[ranks], tmp_path), strict=True), strict=True):
        first = joined(found, "first")
        assert first.keys() == alone.first.keys()
        assert all(torch.equal(first[name], value) for name, value in alone.first.items()), layout
        assert_same(joined(found, "gradients"), gradients)
        last_stage = [rank.logits_BSV for rank in found if rank.logits_BSV is not None]
        assert len(last_stage) == layout.tensor
        for found_BSV in last_stage:
            assert_same({"logits": found_BSV}, {"logits": logits_BSV})
        for rank in found:
            on, off = rank.collectives
            assert on == off > 0, layout


def dropped_inputs(folder: Path) -> dict[str, Tensor]:
    with parallel_session(tensor=2):
        arch = read_architecture(folder)
        model = build_model(arch, transformer_config(arch, 2, 1, False, "fp32"))
        add_adapters(model, LoraSettings(rank=4, dropout=0.5))
        layer: Any = model.chunks[0].get_submodule("decoder.layers.0")
        places = {"q_proj": layer.self_attention.linear_qkv, "o_proj": layer.self_attention.linear_proj}
        return {name: linear.lora[name].dropped(torch.ones(20, 32)) != 0 for name, linear in places.items()}


def test_tensor_ranks_drop_the_same_of_inputs_they_share_and_each_its_own_of_others(tmp_path: Path) -> None:
    one, other = run_distributed(dropped_inputs, 2, save_model(tmp_path))
    assert torch.equal(one["q_proj"], other["q_proj"])
    assert abs(float((one["o_proj"] == other["o_proj"]).float().mean()) - 0.5) < 0.1
