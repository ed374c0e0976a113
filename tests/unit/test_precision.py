"""FP8 settings: what they ask of megatron.core, of micro-batches and of the machine, and which cannot be together."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_atesd.config import ModelConfig, ParallelConfig, PrecisionConfig, TrainConfig, validate
from megatron_atesd.errors import ConfigError
from megatron_atesd.model import spec, supported
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.fp8 import fp8_fields
from megatron_atesd.model.gpt import HiddenStateGPT, build_model
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.model.scaling_history import load_scaling_history, scaling_history
from megatron_atesd.model.schedule import model_batches
from megatron_atesd.parallel.session import parallel_session

ARCH = Architecture("qwen3", 32, 48, 2, 2, 2, 16, 21, 64, 1e4, 1e-6, tied=True, qk_norm=True)
BF16 = ModelConfig(dtype="bf16")


@pytest.fixture
def model() -> Iterator[HiddenStateGPT]:
    with parallel_session():
        yield build_model(ARCH, transformer_config(ARCH, 1, 1, False, "bf16"))


@pytest.mark.parametrize(
    ("model", "precision", "message"),
    [
        (ModelConfig(), PrecisionConfig(student="bf16"), "precision.student is bf16, but model.dtype is fp32"),
        (ModelConfig(), PrecisionConfig(teacher="fp8_mxfp8"), "precision.teacher is fp8_mxfp8, but model.dtype is fp32"),
        (
            ModelConfig(dtype="bf16", attention="sdpa"),
            PrecisionConfig(rollout="fp8_blockwise"),
            "precision.rollout is fp8_blockwise, which only Transformer Engine computes, but model.attention is sdpa",
        ),
        (
            BF16,
            PrecisionConfig("fp8_delayed", "fp8_tensorwise"),
            "precision.student fp8_delayed and precision.teacher fp8_tensorwise cannot be together",
        ),
        (BF16, PrecisionConfig(teacher="fp8_delayed"), "precision.teacher is fp8_delayed, but precision.student is null: scales"),
        (BF16, PrecisionConfig("bf16", rollout="fp8_delayed"), "precision.rollout is fp8_delayed, but precision.student is 'bf16': scales"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(model: ModelConfig, precision: PrecisionConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(TrainConfig(model=model, precision=precision))


@pytest.mark.parametrize(
    "precision", [PrecisionConfig("fp8_delayed", "bf16", "fp8_delayed"), PrecisionConfig("fp8_blockwise", "fp8_tensorwise")]
)
def test_recipes_that_go_together_pass(precision: PrecisionConfig) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(TrainConfig(model=BF16, precision=precision))  # the files are missing
    assert "precision" not in str(caught.value)


def test_gradients_have_the_range_of_e5m2_where_a_whole_tensor_shares_a_scale() -> None:
    assert fp8_fields("fp8_tensorwise") == {"fp8": "hybrid", "fp8_recipe": "tensorwise"}
    assert fp8_fields("fp8_delayed") == {"fp8": "hybrid", "fp8_recipe": "delayed"}
    assert fp8_fields("fp8_blockwise") == {"fp8": "e4m3", "fp8_recipe": "blockwise"}
    assert fp8_fields("fp8_mxfp8") == {"fp8": "e4m3", "fp8_recipe": "mxfp8"}
    assert fp8_fields("bf16")["fp8"] is fp8_fields(None)["fp8"] is None


def test_the_delayed_recipes_scales_wait_for_no_data_parallel_rank_and_for_no_single_micro_batch() -> None:
    """Data-parallel ranks may have different numbers of micro-batches: a reduction among them in each would never end."""
    config = transformer_config(ARCH, 1, 1, False, "bf16")
    assert config.tp_only_amax_red
    assert (config.fp8_amax_history_len, config.fp8_amax_compute_algo) == (1024, "max")
    with pytest.raises(ConfigError, match=r"megatron\.tp_only_amax_red is decided by this program"):
        transformer_config(ARCH, 1, 1, False, "bf16", {"tp_only_amax_red": False})


def test_a_pass_in_fp8_has_padded_micro_batches_and_ends_with_its_precision(model: HiddenStateGPT) -> None:
    pairs = [([1, 2, 3], [4, 5])]
    with model.computing_in("fp8_mxfp8"):
        assert (model.config.fp8, model.config.fp8_recipe) == ("e4m3", "mxfp8")
        assert model_batches(model, pairs, 8)[0].ids_BS.shape == (1, 32)
        with model.computing_in("fp8_delayed"):
            assert model_batches(model, pairs, 8)[0].ids_BS.shape == (1, 16)
        assert model.config.fp8_recipe == "mxfp8"
    assert model.config.fp8 is None
    assert model_batches(model, pairs, 8)[0].ids_BS.shape == (1, 5)


def test_a_pass_that_fails_ends_with_its_precision_too(model: HiddenStateGPT) -> None:
    with pytest.raises(ZeroDivisionError), model.computing_in("fp8_mxfp8"):
        _ = 1 / 0
    assert model.config.fp8 is None


@pytest.mark.parametrize(("installed", "gpu"), [(False, True), (True, False)])
def test_transformer_engine_is_taken_where_it_can_run(monkeypatch: pytest.MonkeyPatch, installed: bool, gpu: bool) -> None:
    monkeypatch.setattr(spec, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert not spec.uses_transformer_engine(BF16)
    with pytest.raises(ConfigError, match=r"model\.attention is te, but .*; set it to auto or sdpa"):
        spec.uses_transformer_engine(ModelConfig(attention="te"))
    monkeypatch.setattr(spec, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [spec.uses_transformer_engine(replace(BF16, attention=choice)) for choice in ("auto", "te", "sdpa")] == [True, True, False]
    assert [spec.uses_transformer_engine(ModelConfig(attention=choice)) for choice in ("auto", "te")] == [False, True]


def fp8_refusal(monkeypatch: pytest.MonkeyPatch, engine: bool = True, reason: str = "", tensor: int = 1) -> str:
    monkeypatch.setattr(supported, "uses_transformer_engine", lambda model: engine)
    monkeypatch.setattr(supported, "unavailable", lambda precision: reason)
    config = TrainConfig(model=BF16, precision=PrecisionConfig(teacher="fp8_tensorwise"), parallel=ParallelConfig(tensor=tensor))
    with pytest.raises(ConfigError) as caught:
        supported.check_fp8(config, ARCH)
    return str(caught.value)


def test_fp8_without_transformer_engine_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fp8_refusal(monkeypatch, engine=False).startswith(
        "precision.teacher is fp8_tensorwise, but Transformer Engine or a GPU is missing"
    )


def test_fp8_that_the_gpu_does_not_know_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "does not support it (compute capability 8.0)" in fp8_refusal(monkeypatch, reason="compute capability 8.0")


def test_layers_too_narrow_for_fp8_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "the feed-forward width is 24 with parallel.tensor 2, no multiple of 16" in fp8_refusal(monkeypatch, tensor=2)


class StandIn(torch.nn.Module):
    """A linear layer of Transformer Engine, as far as the delayed recipe's state goes."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length, self.fp8_meta = length, dict[str, Any]()

    def init_fp8_meta_tensors(self, recipe: Any) -> None:
        for way, tensors in (("fwd", 3), ("bwd", 2)):
            size = tensors * self.fp8_meta["num_gemms"]
            state = SimpleNamespace(scale=torch.ones(size), amax_history=torch.zeros(self.length, size))
            self.fp8_meta[f"scaling_{way}"] = state


def with_stand_ins(model: HiddenStateGPT, length: int) -> StandIn:
    """Puts a stand-in beside a layer's weights; returns it."""
    stand_in = StandIn(length)
    model.chunks[0].decoder.layers[1].add_module("stand_in", stand_in)
    return stand_in


def test_the_delayed_recipes_history_comes_back_also_at_another_length(model: HiddenStateGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_atesd.model.scaling_history.get_fp8_recipe", lambda config: None)
    old = with_stand_ins(model, 4)
    assert scaling_history(model) == {}
    old.fp8_meta["num_gemms"] = 1
    old.init_fp8_meta_tensors(None)
    old.fp8_meta["scaling_fwd"].amax_history.copy_(torch.arange(12.0).view(4, 3))
    old.fp8_meta["scaling_bwd"].scale.fill_(7)
    saved = scaling_history(model)
    assert list(saved) == ["decoder.layers.1.stand_in"]
    new = with_stand_ins(model, 2)
    load_scaling_history(model, saved)
    assert torch.equal(new.fp8_meta["scaling_fwd"].amax_history, torch.arange(6.0).view(2, 3))
    assert torch.equal(new.fp8_meta["scaling_bwd"].scale, torch.full((2,), 7.0))


def test_a_layer_without_saved_history_begins_anew(model: HiddenStateGPT) -> None:
    used, fresh = with_stand_ins(model, 4), StandIn(4)
    for layer in (used, fresh):
        layer.fp8_meta["num_gemms"] = 1
        layer.init_fp8_meta_tensors(None)
    for way in ("fwd", "bwd"):
        used.fp8_meta[f"scaling_{way}"].scale.fill_(7)
        used.fp8_meta[f"scaling_{way}"].amax_history.fill_(3)
    load_scaling_history(model, {})
    for way in ("fwd", "bwd"):
        assert torch.equal(used.fp8_meta[f"scaling_{way}"].scale, fresh.fp8_meta[f"scaling_{way}"].scale)
        assert torch.equal(used.fp8_meta[f"scaling_{way}"].amax_history, fresh.fp8_meta[f"scaling_{way}"].amax_history)


def test_a_folder_without_history_is_fine(model: HiddenStateGPT, tmp_path: Path) -> None:
    stand_in = with_stand_ins(model, 4)
    load_scaling_history(model, {})
    assert stand_in.fp8_meta == {}


@pytest.mark.parametrize(("model", "context", "engine"), [(BF16, 2, True), (ModelConfig(), 1, True), (ModelConfig(), 2, False)])
def test_context_parallelism_that_has_kernels_passes(
    monkeypatch: pytest.MonkeyPatch, model: ModelConfig, context: int, engine: bool
) -> None:
    monkeypatch.setattr(supported, "uses_transformer_engine", lambda attention: engine)
    assert supported.check_context(TrainConfig(model=model, parallel=ParallelConfig(context=context))) is None


def test_context_parallelism_in_fp32_is_refused_with_transformer_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supported, "uses_transformer_engine", lambda attention: True)
    with pytest.raises(ConfigError, match=r"parallel\.context is 2 with model\.dtype fp32, .* set model\.dtype to bf16"):
        supported.check_context(TrainConfig(parallel=ParallelConfig(context=2)))
