"""The model that trains as a stream of Hugging Face tensors: at any TP × PP × VP every rank sees each tensor whole, as it was loaded."""

from pathlib import Path

import pytest
import torch

from megatron_atesd.checkpoint.hf_stream import hf_stream
from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.model.gpt import build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.lora import LoraSettings, adapters_off, add_adapters
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.parallel.session import parallel_session
from tests.support.convert_models import read_tensors, save_model
from tests.support.launch import run_distributed
from tests.support.lora_case import filled
from tests.support.lora_ranks import Layout, built, fill

LAYOUTS = {"alone": (1, 1, 1), "TP 2": (2, 1, 1), "TP 2, PP 2": (2, 2, 1), "PP 2, VP 2": (1, 2, 2), "TP 4": (4, 1, 1)}


def streamed(folder: Path, tensor: int, pipeline: int, virtual: int) -> dict[str, torch.Tensor]:
    with parallel_session(tensor, pipeline, virtual_pipeline=virtual):
        arch = read_architecture(folder)
        model = build_model(arch, transformer_config(arch, tensor, pipeline, False, "fp32", virtual_pipeline=virtual))
        load_hf_weights(model, folder)
        return dict(hf_stream(model))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["qwen3 tied", "llama own head"])
def test_every_rank_sees_each_tensor_as_it_was_loaded(kind: str, layout: str, tmp_path: Path):
    """A vocabulary of 61 is padded at TP 2 and more at TP 4."""
    sizes = {"num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 4, "tie_word_embeddings": kind.endswith("tied")}
    save_model(tmp_path, kind.split()[0], **sizes)
    expected = read_tensors(tmp_path)
    tensor, pipeline, virtual = LAYOUTS[layout]
    for seen in run_distributed(streamed, tensor * pipeline, tmp_path, tensor, pipeline, virtual):
        assert seen.keys() == expected.keys()
        assert all(torch.equal(seen[name], expected[name]) for name in expected)


SETTINGS = LoraSettings(rank=4, alpha=6.0, targets=("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"))


def streamed_with_adapters(folder: Path, layout: Layout, dtype: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], bool]:
    """With adapters on and off, and whether all parameters are afterwards what they were."""
    with parallel_session(layout.tensor, layout.pipeline, virtual_pipeline=layout.virtual):
        model = built(layout, folder, dtype)
        add_adapters(model, SETTINGS)
        fill(model)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        on = dict(hf_stream(model))
        with adapters_off(model):
            off = dict(hf_stream(model))
        return on, off, all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def merged(name: str, weight: torch.Tensor) -> torch.Tensor:
    """W + s·B·A in fp32, then in W's type."""
    projection = name.removesuffix(".weight")
    if not projection.endswith(SETTINGS.targets):
        return weight
    a_RI = filled(f"{projection}.lora_A.weight", (SETTINGS.rank, weight.shape[1]))
    b_OR = filled(f"{projection}.lora_B.weight", (weight.shape[0], SETTINGS.rank))
    return (weight.float() + 1.5 * b_OR @ a_RI).to(weight.dtype)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", ["alone", "TP 2", "TP 2, PP 2", "PP 2, VP 2"])
def test_adapters_are_merged_and_the_parameters_stay(layout: str, dtype: str, tmp_path: Path) -> None:
    torch_dtype, tolerance = {"fp32": (torch.float32, 1e-6), "bf16": (torch.bfloat16, 2**-8)}[dtype]
    save_model(tmp_path, dtype=torch_dtype, num_attention_heads=8, num_key_value_heads=4, num_hidden_layers=4)
    loaded = read_tensors(tmp_path)
    expected = {name: merged(name, weight) for name, weight in loaded.items()}
    tensor, pipeline, virtual = LAYOUTS[layout]
    for on, off, same in run_distributed(streamed_with_adapters, tensor * pipeline, tmp_path, Layout(tensor, pipeline, virtual), dtype):
        assert same
        assert on.keys() == off.keys() == loaded.keys()
        for name, weight in loaded.items():
            assert torch.equal(off[name], weight)
            assert on[name].dtype == torch_dtype
            torch.testing.assert_close(on[name], expected[name], rtol=tolerance, atol=1e-6)
            assert torch.equal(on[name], weight) == (".".join(name.split(".")[-2:-1]) not in SETTINGS.targets)
