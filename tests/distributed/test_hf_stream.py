"""The model that trains as a stream of Hugging Face tensors: at any TP × PP × VP every rank sees each tensor whole, as it was loaded."""

from pathlib import Path

import pytest
import torch

from megatron_atesd.checkpoint.hf_stream import hf_stream
from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.model.gpt import build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.parallel.session import parallel_session
from tests.support.convert_models import read_tensors, save_model
from tests.support.launch import run_distributed

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
