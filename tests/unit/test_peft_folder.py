"""Adapters as peft has them: what it wrote loads here, what is written here loads there, with the same names and logits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from checkpoints_convert import megatron_to_hf
from checkpoints_convert.command import single_process, whole_model
from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.checkpoint.peft_folder import PeftFolder, load_peft
from megatron_atesd.errors import ConfigError, ConversionError
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.lora import LoraSettings, adapter_parameters, add_adapters
from tests.support.adapter_folders import adapted, logits_of, save_checkpoint, save_peft
from tests.support.convert_models import save_model
from tests.support.lora_case import IDS_BS, assert_same

peft = pytest.importorskip("peft")

SOME = ("q_proj", "v_proj", "up_proj", "down_proj")
CASES: dict[str, tuple[dict[str, Any], LoraSettings]] = {
    "qwen3, tied, all": ({}, LoraSettings(rank=4, alpha=6.0)),
    "qwen3, untied, some, rslora": ({"tie_word_embeddings": False}, LoraSettings(rank=8, alpha=6.0, targets=SOME, rslora=True)),
    "llama, untied, all, rslora": ({"family": "llama", "tie_word_embeddings": False}, LoraSettings(rank=4, alpha=6.0, rslora=True)),
    "llama, tied, some": ({"family": "llama"}, LoraSettings(rank=64, alpha=7.5, targets=SOME)),
}
ALL = pytest.mark.parametrize(("model", "settings"), CASES.values(), ids=CASES)


def loaded_by_peft(base: Path, folder: Path, **how: Any) -> Any:
    return peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder, **how)


def export(base: Path, folder: Path, settings: LoraSettings, **how: Any) -> dict[str, torch.Tensor]:
    """A checkpoint of adapters converted to folder / "peft"; its factors."""
    factors = save_checkpoint(folder / "step_1", base, settings)
    with single_process():
        megatron_to_hf.convert(folder / "step_1", folder / "peft", **how)
    return factors


@ALL
def test_what_is_written_here_loads_in_peft_with_equal_logits(tmp_path: Path, model: dict[str, Any], settings: LoraSettings) -> None:
    base = save_model(tmp_path / "hf", **model)
    export(base, tmp_path, settings)
    with single_process():
        ours = logits_of(adapted(base, settings))
    theirs = logits_of(loaded_by_peft(base, tmp_path / "peft"))
    assert_same({"logits": ours}, {"logits": theirs})
    assert not torch.allclose(ours, logits_of(AutoModelForCausalLM.from_pretrained(base)), atol=0.1)


@ALL
def test_names_and_settings_are_those_that_peft_writes(tmp_path: Path, model: dict[str, Any], settings: LoraSettings) -> None:
    base = save_model(tmp_path / "hf", **model)
    export(base, tmp_path, settings)
    save_peft(tmp_path / "theirs", base, settings)
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("peft", "theirs"))
    assert {name: tensor.shape for name, tensor in ours.items()} == {name: tensor.shape for name, tensor in theirs.items()}
    configs = [vars(peft.LoraConfig.from_pretrained(tmp_path / name)) for name in ("peft", "theirs")]
    assert configs[0] | {"peft_version": None} == configs[1] | {"peft_version": None}


def test_training_goes_on_in_peft(tmp_path: Path) -> None:
    base = save_model(tmp_path / "hf")
    export(base, tmp_path, LoraSettings(rank=4, alpha=6.0, dropout=0.0))
    model = loaded_by_peft(base, tmp_path / "peft", is_trainable=True)
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(learning) == 2 * 2 * 7
    assert all("lora_" in name for name in learning)
    optimizer = torch.optim.SGD(learning.values(), lr=1e-3)
    before = model(IDS_BS, labels=IDS_BS).loss
    before.backward()
    optimizer.step()
    assert model(IDS_BS, labels=IDS_BS).loss < before


@ALL
def test_what_peft_wrote_loads_here_with_equal_logits(tmp_path: Path, model: dict[str, Any], settings: LoraSettings) -> None:
    base = save_model(tmp_path / "hf", **model)
    theirs = logits_of(save_peft(tmp_path / "peft", base, settings))
    with single_process():
        ours = whole_model(read_architecture(base), "fp32")
        load_hf_weights(ours, base)
        found = PeftFolder(tmp_path / "peft", ours.arch).settings
        assert replace(found, targets=tuple(sorted(found.targets))) == replace(settings, targets=tuple(sorted(settings.targets)))
        add_adapters(ours, settings)
        load_peft(ours, tmp_path / "peft")
        assert_same({"logits": logits_of(ours)}, {"logits": theirs})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_bit_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    base, settings = save_model(tmp_path / "hf"), LoraSettings(rank=4, dropout=0.1, dtype=dtype)
    factors = export(base, tmp_path, settings)
    with single_process():
        model = whole_model(read_architecture(base), "fp32")
        assert PeftFolder(tmp_path / "peft", model.arch).settings == settings
        add_adapters(model, settings)
        load_peft(model, tmp_path / "peft")
        for name, factor in adapter_parameters(model).items():
            assert factor.dtype == dtype
            assert torch.equal(factor, factors[name]), name


def test_adapters_take_over_values_in_their_own_type(tmp_path: Path) -> None:
    base = save_model(tmp_path / "hf")
    factors = export(base, tmp_path, LoraSettings(rank=4), asked_dtype="bf16")
    with single_process():
        model = whole_model(read_architecture(base), "fp32")
        add_adapters(model, LoraSettings(rank=4))
        load_peft(model, tmp_path / "peft")
        for name, factor in adapter_parameters(model).items():
            assert torch.equal(factor, factors[name].bfloat16().float()), name


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"rank": 8}, "lora.rank is 8, but the adapter in {} has 4"),
        ({"alpha": 7.0}, "lora.alpha is 7.0, but the adapter in {} has 6.0"),
        ({"rslora": True}, "lora.rslora is True, but the adapter in {} has False"),
        ({"targets": ("v_proj", "q_proj")}, "lora.targets is ['q_proj', 'v_proj'], but the adapter in {} has ['k_proj', 'q_proj']"),
    ],
)
def test_settings_that_differ_are_named_with_both_values(tmp_path: Path, other: dict[str, Any], says: str) -> None:
    base, settings = save_model(tmp_path / "hf"), LoraSettings(rank=4, alpha=6.0, targets=("q_proj", "k_proj"))
    save_peft(tmp_path / "peft", base, settings)
    with single_process():
        model = whole_model(read_architecture(base), "fp32")
        add_adapters(model, replace(settings, **other))
        before = {name: factor.detach().clone() for name, factor in adapter_parameters(model).items()}
        with pytest.raises(ConfigError) as caught:
            load_peft(model, tmp_path / "peft")
        assert says.format(tmp_path / "peft") in str(caught.value)
        assert all(torch.equal(factor, before[name]) for name, factor in adapter_parameters(model).items())


def test_dropout_the_order_of_targets_and_how_it_began_may_differ(tmp_path: Path) -> None:
    base, settings = save_model(tmp_path / "hf"), LoraSettings(rank=4, targets=("q_proj", "k_proj"))
    save_peft(tmp_path / "peft", base, settings, lora_dropout=0.5, init_lora_weights="Gaussian")
    with single_process():
        model = whole_model(read_architecture(base), "fp32")
        add_adapters(model, replace(settings, targets=("k_proj", "q_proj")))
        load_peft(model, tmp_path / "peft")
        assert PeftFolder(tmp_path / "peft", model.arch).settings.dropout == 0.5
        written = load_file(tmp_path / "peft" / "adapter_model.safetensors")
        assert all(torch.equal(factor, written[f"base_model.model.{name}"]) for name, factor in adapter_parameters(model).items())


def test_not_a_number_is_refused_where_it_is_read(tmp_path: Path) -> None:
    base, settings = save_model(tmp_path / "hf"), LoraSettings(rank=4, targets=("q_proj",))
    model: Any = save_peft(tmp_path / "peft", base, settings)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_B" in name)[3, 1] = float("nan")
    model.save_pretrained(tmp_path / "peft")
    with single_process():
        ours = whole_model(read_architecture(base), "fp32")
        add_adapters(ours, settings)
        with pytest.raises(ConversionError, match=r"layers\.0\.self_attn\.q_proj\.lora_B\.weight holds NaN"):
            load_peft(ours, tmp_path / "peft")
