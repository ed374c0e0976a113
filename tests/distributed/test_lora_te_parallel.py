"""LoRA on layers with Transformer Engine's interface: what the adapters outside such a layer compute and say to other ranks.

The layers are stand-ins on a CPU (tests/support/te_stand_ins.py): Transformer Engine itself, which needs a GPU, has not computed here.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_atesd.config import RolloutConfig
from megatron_atesd.model.lora import LoraSettings, adapters_off, add_adapters
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.rollout.training_engine import TrainingEngine
from tests.support.convert_models import save_model
from tests.support.launch import run_distributed
from tests.support.lora_case import IDS_BS, assert_same
from tests.support.lora_ranks import Layout, built, fill, joined, lora_step, lora_steps
from tests.support.te_stand_ins import stand_in

SETTINGS = {
    "all": LoraSettings(rank=4, alpha=6.0),
    "some, r 64": LoraSettings(rank=64, alpha=6.0, targets=("k_proj", "v_proj", "o_proj", "up_proj")),
}
LAYERS = 2
LAYOUTS = {
    1: [Layout(te=True), Layout(te=True, recompute="full")],
    2: [
        Layout(te=True, tensor=2),
        Layout(te=True, tensor=2, recompute="full"),
        Layout(te=True, tensor=2, sequence=True),
        Layout(te=True, tensor=2, sequence=True, recompute="full"),
    ],
    4: [Layout(te=True, tensor=2, context=2, sequence=True, packed=True, tokens=16)],
}


@pytest.mark.parametrize("case", SETTINGS)
def test_logits_and_gradients_are_those_of_adapters_inside_local_layers(tmp_path: Path, case: str) -> None:
    save_model(tmp_path)
    settings = SETTINGS[case]
    alone = lora_step(Layout(), tmp_path, settings)
    for world, layouts in LAYOUTS.items():
        for found in zip(*run_distributed(lora_steps, world, layouts, tmp_path, settings), strict=True):
            first = joined(found, "first")
            assert first.keys() == alone.first.keys()
            assert all(torch.equal(first[name], value) for name, value in alone.first.items())
            assert_same(joined(found, "gradients"), alone.gradients)
            assert [sorted(rank.logits_SV) for rank in found] == [[0, 1]] * world
            for rank in found:
                assert_same({str(n): rank.logits_SV[n] for n in range(len(IDS_BS))}, {str(n): alone.logits_SV[n] for n in range(2)})


def test_a_forward_has_one_small_collective_more_a_row_parallel_layer_and_with_sequence_parallelism_a_column_parallel_one(
    tmp_path: Path,
) -> None:
    layouts = [Layout(te=True, tensor=2), Layout(te=True, tensor=2, sequence=True)]
    save_model(tmp_path, num_hidden_layers=LAYERS)
    for plain, sequence in run_distributed(lora_steps, 2, layouts, tmp_path, SETTINGS["all"]):
        for found, more in ((plain, 2), (sequence, 4)):
            on, off = found.collectives
            assert on - off == more * LAYERS * found.batches


def sizes_of_collectives(folder: Path, sequence: bool) -> list[int]:
    """Numbers a token in what the adapters of a layer's attention hand to other ranks: of the column-parallel product, the row-parallel."""
    with parallel_session(tensor=2):
        model = built(Layout(tensor=2, sequence=sequence), folder)
        stand_in(model)
        add_adapters(model, SETTINGS["all"])
        fill(model)
        layer: Any = model.chunks[0].get_submodule("decoder.layers.0")
        narrow = []
        for linear in (layer.self_attention.linear_qkv, layer.self_attention.linear_proj):
            over = linear._over_tensor_ranks
            linear._over_tensor_ranks = lambda x, on, over=over: (narrow.append(x.shape[-1]), over(x, on))[1]
        model(IDS_BS)
        return narrow


@pytest.mark.parametrize("sequence", [False, True])
def test_what_adapters_say_to_other_ranks_is_as_wide_as_their_ranks(tmp_path: Path, sequence: bool) -> None:
    assert run_distributed(sizes_of_collectives, 2, save_model(tmp_path), sequence) == [[3 * 4, 4]] * 2


def generated(folder: Path, te: bool, sequence: bool) -> list[list[tuple[tuple[int, ...], tuple[float, ...]]]]:
    """Responses with adapters on, and off."""
    greedy = RolloutConfig(max_new_tokens=8, temperature=0.0)
    with parallel_session(tensor=2):
        model = built(Layout(tensor=2, sequence=sequence), folder)
        if te:
            stand_in(model)
        add_adapters(model, SETTINGS["some, r 64"])
        fill(model)
        engine = TrainingEngine(model, [2])

        def responses() -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
            return [(r.ids, r.logprobs) for r in engine.generate([[5, 7, 9], [1, 2]], [1, 2], greedy)]

        on = responses()
        with adapters_off(model):
            return [on, responses()]


@pytest.mark.parametrize("sequence", [False, True])
def test_generation_is_that_of_local_layers(tmp_path: Path, sequence: bool) -> None:
    save_model(tmp_path)
    assert run_distributed(generated, 2, tmp_path, True, sequence) == run_distributed(generated, 2, tmp_path, False, False)


def test_a_bf16_layer_takes_fp32_adapters(tmp_path: Path) -> None:
    """Transformer Engine refuses parameters of another type than its input's."""
    save_model(tmp_path)
    settings = replace(SETTINGS["all"], targets=("q_proj",))
    with parallel_session():
        model = built(Layout(), tmp_path, "bf16")
        stand_in(model)
        add_adapters(model, settings)
        fill(model)
        linear: Any = model.chunks[0].get_submodule("decoder.layers.0.self_attention.linear_qkv")
        x = torch.randn(5, 1, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
        on = linear(x)[0]
        with adapters_off(model):
            base = linear(x)[0]
        normed = torch.nn.functional.rms_norm(x, (32,), linear.layer_norm_weight, linear.eps).float()
        adapter = linear.lora["q_proj"]
        added = normed @ adapter.lora_A.weight.T @ (adapter.lora_B.weight * settings.scaling).T
        queries = on.unflatten(-1, (2, -1))[..., :32].flatten(-2)
        assert torch.equal(queries, (base.unflatten(-1, (2, -1))[..., :32].flatten(-2).float() + added).bfloat16())
        assert not torch.equal(on, base)
