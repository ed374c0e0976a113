"""Fused gradient accumulation: asked for only with NVIDIA Apex, and the gradients of a step are the same with it.

Apex's kernel runs on GPUs only. In its place stands a module of the same name that adds the same product in torch: what is shown is that
these gradients and those of the vocabulary head, which come from autograd, meet in DistributedDataParallel's buffers.
"""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.tensor_parallel import layers

from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.config import ScheduleConfig
from megatron_atesd.distill.step import distill_step
from megatron_atesd.distill.teacher import Teacher
from megatron_atesd.errors import ConfigError
from megatron_atesd.model.apex import find_apex
from megatron_atesd.model.gpt import build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.train.optimizer import build_optimization
from tests.support.distill_case import DIVERGENCE, RECOMPUTE, examples, save_models

KERNEL = """
calls = []

def wgrad_gemm_accum_fp32(inputs, d_outputs, total):
    total.addmm_(d_outputs.t(), inputs)
    calls.append(total)
"""


@pytest.fixture
def apex(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in, installed as Apex's package and modules are."""
    (tmp_path / "apex" / "optimizers").mkdir(parents=True)
    (tmp_path / "apex" / "__init__.py").touch()
    (tmp_path / "fused_weight_gradient_mlp_cuda.py").write_text(KERNEL)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("fused_weight_gradient_mlp_cuda")
    monkeypatch.setattr(layers, "fused_weight_gradient_mlp_cuda", module, raising=False)
    monkeypatch.setattr(layers, "_grad_accum_fusion_available", True)
    yield module
    del sys.modules[module.__name__]


def gradients(folder: Path, megatron: dict[str, Any]) -> list[torch.Tensor]:
    """Of every parameter, after a step of several micro-batches."""
    with parallel_session():
        architecture = read_architecture(folder / "student")
        model = build_model(architecture, transformer_config(architecture, 1, 1, False, "fp32", megatron))
        load_hf_weights(model, folder / "teacher")
        teacher = Teacher(model, "initial")
        load_hf_weights(model, folder / "student")
        optimization = build_optimization(model, {"lr": 1e-3}, {"overlap_grad_reduce": True}, ScheduleConfig(), 10)
        optimization.zero_grad()
        distill_step(optimization.wrapped, model, teacher, examples(37), DIVERGENCE, micro_batch_tokens=1)
        return [parameter.main_grad.clone() for parameter in model.parameters()]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("recompute", ["", "full"])
def test_gradients_are_the_same_with_it(tied: bool, recompute: str, apex: Any, tmp_path: Path) -> None:
    save_models(tmp_path, "qwen3", tied)
    expected = gradients(tmp_path, RECOMPUTE[recompute])
    fused = gradients(tmp_path, {**RECOMPUTE[recompute], "gradient_accumulation_fusion": True})
    assert len(apex.calls) == 4 * 4 * 4  # examples, layers, linear maps of a layer
    for one, other in zip(fused, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(other.abs().max()))


def test_it_is_refused_without_apex(tmp_path: Path) -> None:
    save_models(tmp_path, "qwen3", tied=True)
    with pytest.raises(ConfigError, match="gradient_accumulation_fusion is true, but NVIDIA Apex's module fused_weight_gradient_mlp_cuda"):
        transformer_config(read_architecture(tmp_path / "student"), 1, 1, False, "fp32", {"gradient_accumulation_fusion": True})


@pytest.mark.usefixtures("apex")
def test_apex_is_told_by_its_modules() -> None:
    assert (find_apex().nvidias, find_apex().gradients, find_apex().kernels) == (True, True, False)


def test_a_package_that_is_only_called_apex_is_not_nvidias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert (find_apex().folders, find_apex().nvidias) == ((tmp_path / "apex",), False)
