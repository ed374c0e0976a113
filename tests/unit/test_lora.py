"""LoRA in one process: equal to adapters merged by hand, and to PEFT where it is installed; nothing of the base moves."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from torch import Tensor
from transformers import AutoModelForCausalLM

from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.errors import ConfigError
from megatron_atesd.model.gpt import HiddenStateGPT, build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.lora import LoraSettings, adapter_parameters, adapters_off, add_adapters
from megatron_atesd.model.lora_adapter import Adapter
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.parallel.session import parallel_session
from tests.support.convert_models import SIZES, save_model
from tests.support.distill_case import RECOMPUTE
from tests.support.lora_case import IDS_BS, assert_same, filled, loss_of, merged_reference

SOME = ("q_proj", "v_proj", "up_proj", "down_proj")
OTHERS = ("k_proj", "o_proj", "gate_proj")
CASES = {
    "qwen3, tied, all": ("qwen3", True, LoraSettings(rank=4, alpha=6.0)),
    "llama, untied, all, r 64": ("llama", False, LoraSettings(rank=64, alpha=6.0, rslora=True)),
    "llama, tied, some": ("llama", True, LoraSettings(rank=4, alpha=6.0, targets=SOME)),
    "qwen3, untied, the others, r 64": ("qwen3", False, LoraSettings(rank=64, alpha=6.0, targets=OTHERS)),
}
RECOMPUTED = {
    "full": RECOMPUTE["full"],
    "attention": RECOMPUTE["selective"],
    "mlp": {"recompute_granularity": "selective", "recompute_modules": ["mlp"]},
}
ALL_FOUR = pytest.mark.parametrize(("family", "tied", "settings"), CASES.values(), ids=CASES.keys())


@pytest.fixture(autouse=True)
def _session() -> Iterator[None]:
    with parallel_session():
        yield


def built(folder: Path, dtype: str = "fp32", **megatron: Any) -> HiddenStateGPT:
    arch = read_architecture(folder)
    model = build_model(arch, transformer_config(arch, 1, 1, False, dtype, megatron))
    load_hf_weights(model, folder)
    return model


def adapted(folder: Path, settings: LoraSettings, dtype: str = "fp32", **megatron: Any) -> HiddenStateGPT:
    """A model with adapters whose B is no longer zero."""
    model = built(folder, dtype, **megatron)
    add_adapters(model, settings)
    with torch.no_grad():
        for name, parameter in adapter_parameters(model).items():
            if "lora_B" in name:
                parameter.copy_(filled(name, parameter.shape))
    return model


def logits(model: HiddenStateGPT) -> Tensor:
    return model(IDS_BS) @ model.head_weight().T


def logits_and_gradients(model: HiddenStateGPT) -> tuple[Tensor, dict[str, Tensor]]:
    """The gradients by PEFT's names."""
    found = logits(model)
    loss_of(found).backward()
    gradients = {name: parameter.grad for name, parameter in adapter_parameters(model).items()}
    return found.detach(), {name: gradient for name, gradient in gradients.items() if gradient is not None}


@ALL_FOUR
def test_logits_and_gradients_are_those_of_adapters_merged_by_hand(tmp_path: Path, family: str, tied: bool, settings: LoraSettings) -> None:
    model = adapted(save_model(tmp_path, family, tie_word_embeddings=tied), settings)
    parameters = adapter_parameters(model)
    found, gradients = logits_and_gradients(model)
    expected, expected_gradients = merged_reference(tmp_path, parameters, settings.scaling)
    assert_same({"logits": found}, {"logits": expected})
    assert_same(gradients, expected_gradients)
    blocks = {name: "self_attn" if name in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp" for name in settings.targets}
    places = [f"model.layers.{layer}.{block}.{name}" for layer in range(2) for name, block in blocks.items()]
    assert set(parameters) == {f"{place}.{factor}.weight" for place in places for factor in ("lora_A", "lora_B")}


@ALL_FOUR
def test_logits_and_gradients_are_those_of_peft(tmp_path: Path, family: str, tied: bool, settings: LoraSettings) -> None:
    peft = pytest.importorskip("peft")
    model = adapted(save_model(tmp_path, family, tie_word_embeddings=tied), settings)
    chosen = {"r": settings.rank, "lora_alpha": settings.alpha, "target_modules": list(settings.targets), "use_rslora": settings.rslora}
    reference = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path), peft.LoraConfig(**chosen))
    theirs = {
        name.removeprefix("base_model.model.").replace(".default", ""): parameter
        for name, parameter in reference.named_parameters()
        if parameter.requires_grad
    }
    with torch.no_grad():
        for name, parameter in adapter_parameters(model).items():
            theirs[name].copy_(parameter)
    found, gradients = logits_and_gradients(model)
    expected = reference(IDS_BS).logits
    loss_of(expected).backward()
    assert_same({"logits": found}, {"logits": expected.detach()})
    assert_same(gradients, {name: parameter.grad for name, parameter in theirs.items()})


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_new_adapter_changes_no_bit_and_one_that_is_off_neither(tmp_path: Path, dtype: str) -> None:
    save_model(tmp_path)
    base = logits(built(tmp_path, dtype)).detach()
    new = built(tmp_path, dtype)
    add_adapters(new, LoraSettings(rank=4))
    assert torch.equal(logits(new), base)
    model = adapted(tmp_path, LoraSettings(rank=4), dtype)
    on = logits(model).detach()
    with adapters_off(model):
        assert torch.equal(logits(model), base)
        with adapters_off(model):
            pass
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), on)
    assert not torch.allclose(on, base, atol=0.1)


def test_a_bf16_base_has_fp32_adapters_and_adds_them_up_in_fp32(tmp_path: Path) -> None:
    model = adapted(save_model(tmp_path), LoraSettings(rank=4, alpha=6.0, targets=("down_proj",)), "bf16")
    linear = cast("Any", model.chunks[0]).decoder.layers[0].mlp.linear_fc2
    a, b = (linear.lora["down_proj"].get_submodule(factor).weight for factor in ("lora_A", "lora_B"))
    assert a.dtype == b.dtype == torch.float32
    x = torch.randn(5, 1, SIZES["intermediate_size"]).bfloat16()
    with adapters_off(model):
        base = linear(x)[0]
    assert torch.equal(linear(x)[0], (base.float() + x.float() @ a.T @ b.T * 1.5).bfloat16())


def test_layers_that_are_not_megatron_core_s_are_refused(tmp_path: Path) -> None:
    model = built(save_model(tmp_path))
    cast("Any", model.chunks[0]).decoder.layers[1].mlp.linear_fc2 = torch.nn.Linear(48, 32)
    with pytest.raises(ConfigError, match=r"no adapter for Linear \(mlp.linear_fc2\); set model.attention to sdpa"):
        add_adapters(model, LoraSettings())


def test_on_the_meta_device_no_value_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a dry run builds models that no memory would hold."""
    model = built(save_model(tmp_path)).to("meta")
    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", lambda tensor, **_: tensor.is_meta or pytest.fail("drawn"))
    add_adapters(model, LoraSettings(rank=4))
    assert {parameter.device.type for parameter in adapter_parameters(model).values()} == {"meta"}


def test_only_adapters_learn(tmp_path: Path) -> None:
    model = adapted(save_model(tmp_path), LoraSettings(rank=4))
    logits_and_gradients(model)
    adapters = {id(parameter) for parameter in adapter_parameters(model).values()}
    for name, parameter in model.named_parameters():
        assert (parameter.requires_grad, parameter.grad is not None) == ((True, True) if id(parameter) in adapters else (False, False)), (
            name
        )


@pytest.mark.parametrize("targets", [LoraSettings.targets, ("down_proj",)])
@pytest.mark.parametrize("recompute", RECOMPUTED.values(), ids=RECOMPUTED)
def test_recomputed_layers_give_the_same_gradients_with_dropout_too(
    tmp_path: Path, recompute: dict[str, Any], targets: tuple[str, ...]
) -> None:
    save_model(tmp_path)
    settings = LoraSettings(rank=4, targets=targets, dropout=0.3)
    plain, recomputing = adapted(tmp_path, settings), adapted(tmp_path, settings, **recompute)
    expected, got = (_from_one_seed(model) for model in (plain, recomputing))
    assert_same(got, expected, 1e-6)
    without = logits_and_gradients(adapted(tmp_path, replace(settings, dropout=0.0)))[1]
    assert not torch.equal(next(iter(without.values())), next(iter(expected.values())))


def _from_one_seed(model: HiddenStateGPT) -> dict[str, Tensor]:
    """Gradients, with every generator that dropout draws from started anew."""
    model_parallel_cuda_manual_seed(3, force_reset_rng=True)
    torch.manual_seed(3)
    return logits_and_gradients(model)[1]


@pytest.mark.parametrize("target", ["q_proj", "o_proj"])  # a column-parallel base and a row-parallel one
def test_dropout_drops_inputs_and_scales_the_rest_while_training(tmp_path: Path, target: str) -> None:
    model = adapted(save_model(tmp_path), LoraSettings(rank=64, dropout=0.25, targets=(target,)))
    adapter = next(module for module in model.modules() if isinstance(module, Adapter))
    x = torch.rand(500, 32) + 1
    dropped = adapter.dropped(x, target == "q_proj")
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], (x / 0.75)[kept])
    assert abs(float(kept.float().mean()) - 0.75) < 0.02
    assert torch.equal(adapter.eval().dropped(x, target == "q_proj"), x)


def test_each_projection_of_a_fused_product_drops_inputs_of_its_own(tmp_path: Path) -> None:
    model = adapted(save_model(tmp_path), LoraSettings(rank=32, dropout=0.5, targets=("gate_proj", "up_proj")))
    linear = cast("Any", model.chunks[0]).decoder.layers[0].mlp.linear_fc1
    gate, up = linear.narrow(torch.ones(50, 32), torch.eye(32).repeat(2, 1), True).chunk(2, dim=-1)
    assert set(gate.unique().tolist()) == set(up.unique().tolist()) == {0.0, 2.0}
    assert 0.4 < float((gate == up).float().mean()) < 0.6


def test_a_starts_kaiming_uniform_and_differs_from_projection_to_projection(tmp_path: Path) -> None:
    model = built(save_model(tmp_path))
    add_adapters(model, LoraSettings(rank=64))
    matrices = [parameter.detach() for name, parameter in adapter_parameters(model).items() if "lora_A" in name]
    for matrix in matrices:
        assert 0.98 < float(matrix.abs().max()) * matrix.shape[1] ** 0.5 <= 1
    assert len({float(matrix[0, 0]) for matrix in matrices}) == len(matrices) == 7 * SIZES["num_hidden_layers"]


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        ({"rank": 0}, "rank is 0, must be at least 1"),
        ({"alpha": 0.0}, "alpha is 0.0, must be greater than 0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"dropout": 1.0}, "dropout is 1.0, must be from 0 to below 1"),
        ({"targets": ()}, "give one or more of q_proj"),
        ({"targets": ("q_proj", "lm_head")}, "lm_head"),
    ],
)
def test_settings_that_are_none_are_refused(bad: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        LoraSettings(**bad)
