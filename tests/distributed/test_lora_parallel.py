"""LoRA over every kind of parallelism: logits, gradients and first values are one process's, with no collective more."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_atesd.errors import ConfigError
from megatron_atesd.model.gpt import build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.lora import LoraSettings, add_adapters
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.parallel.session import parallel_session
from tests.support.convert_models import save_model
from tests.support.launch import run_distributed
from tests.support.lora_case import IDS_BS, assert_same, filled, merged_reference
from tests.support.lora_ranks import Found, Layout, joined, lora_step, lora_steps

CASES = {
    "tied, all, r 4": (True, LoraSettings(rank=4, alpha=6.0)),
    "untied, some, r 64": (False, LoraSettings(rank=64, alpha=6.0, targets=("k_proj", "o_proj", "up_proj"))),
}
LAYOUTS = {
    2: [
        Layout(tensor=2),
        Layout(tensor=2, sequence=True, recompute="full"),
        Layout(tensor=2, sequence=True, packed=True, tokens=16),
        Layout(pipeline=2),
        Layout(pipeline=2, recompute="full"),
        Layout(pipeline=2, virtual=2, recompute="selective"),
        Layout(context=2, recompute="full"),
        Layout(context=2, packed=True, tokens=16),
        Layout(),
    ],
    4: [
        Layout(tensor=2, pipeline=2, sequence=True),
        Layout(tensor=2, context=2, sequence=True, packed=True, tokens=16, recompute="selective"),
        Layout(tensor=2),
        Layout(pipeline=2, virtual=2, packed=True),
    ],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ranks", LAYOUTS)
def test_adapters_are_one_process_s_at_every_layout(tmp_path: Path, ranks: int, case: str) -> None:
    tied, settings = CASES[case]
    save_model(tmp_path, num_hidden_layers=4, tie_word_embeddings=tied)
    alone = lora_step(Layout(), tmp_path, settings)
    whole = {name: filled(name, value.shape) if "lora_B" in name else value for name, value in alone.first.items()}
    logits_BSV, gradients = merged_reference(tmp_path, whole, settings.scaling)
    gradients = {name: gradient / len(IDS_BS) for name, gradient in gradients.items()}  # of the mean of two losses
    check(Layout(), [alone], alone.first, logits_BSV, gradients)
    results = zip(*run_distributed(lora_steps, ranks, LAYOUTS[ranks], tmp_path, settings), strict=True)
    for layout, found in zip(LAYOUTS[ranks], results, strict=True):
        check(layout, found, alone.first, logits_BSV, gradients)
        for rank in found:
            on, off = rank.collectives
            assert on == off, layout
            assert (on > 0) == (layout != Layout()), layout


def check(layout: Layout, found: Any, first: dict[str, Tensor], logits_BSV: Tensor, gradients: dict[str, Tensor]) -> None:
    ranks: list[Found] = list(found)
    got = joined(ranks, "first")
    assert got.keys() == first.keys()
    assert all(torch.equal(got[name], value) for name, value in first.items()), layout
    assert_same(joined(ranks, "gradients"), gradients)
    seen = [item for rank in ranks for item in rank.logits_SV.items()]
    assert {number for number, _ in seen} == {0, 1}
    assert len(seen) == len(IDS_BS) * layout.tensor * layout.context  # on the last pipeline stage
    for number, logits_SV in seen:
        assert_same({"logits": logits_SV}, {"logits": logits_BSV[number]})


def dropped_inputs(folder: Path) -> dict[str, Tensor]:
    with parallel_session(tensor=2):
        arch = read_architecture(folder)
        model = build_model(arch, transformer_config(arch, 2, 1, False, "fp32"))
        add_adapters(model, LoraSettings(rank=4, dropout=0.5))
        layer: Any = model.chunks[0].get_submodule("decoder.layers.0")
        places = {"q_proj": layer.self_attention.linear_qkv, "o_proj": layer.self_attention.linear_proj}
        return {name: linear.lora[name].dropped(torch.ones(20, 32), name == "q_proj") != 0 for name, linear in places.items()}


def test_tensor_ranks_drop_the_same_of_inputs_they_share_and_each_its_own_of_others(tmp_path: Path) -> None:
    one, other = run_distributed(dropped_inputs, 2, save_model(tmp_path))
    assert torch.equal(one["q_proj"], other["q_proj"])
    assert abs(float((one["o_proj"] == other["o_proj"]).float().mean()) - 0.5) < 0.1


def refused(folder: Path, layout: str, virtual: int) -> str:
    dist.init_process_group("gloo")
    with parallel_session(1, 2, virtual_pipeline=virtual):
        arch = read_architecture(folder)
        megatron = {"pipeline_model_parallel_layout": layout}
        model = build_model(arch, transformer_config(arch, 1, 2, False, "fp32", megatron, virtual))
        with pytest.raises(ConfigError) as error:
            add_adapters(model, LoraSettings())
        return str(error.value)


@pytest.mark.parametrize(
    ("layout", "virtual", "rules"),
    [
        ("E|ttttL", 1, ["pipeline stages have [0, 4] layers"] * 2),
        ("E|tt|tt|L", 2, ["the chunks of a pipeline stage have [0, 2] layers", "the chunks of a pipeline stage have [2, 0] layers"]),
    ],
)
def test_a_part_of_the_model_without_layers_is_refused(tmp_path: Path, layout: str, virtual: int, rules: list[str]) -> None:
    save_model(tmp_path, num_hidden_layers=4)
    for said, rule in zip(run_distributed(refused, 2, tmp_path, layout, virtual), rules, strict=True):
        assert said == f"{rule}, and LoRA has nothing to train without any; change megatron.pipeline_model_parallel_layout"
