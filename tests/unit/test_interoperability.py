"""What docs/interoperability.md promises: its script as it stands there, plain transformers, and Megatron-Bridge's names."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from checkpoints_convert import hf_to_megatron, megatron_to_hf
from megatron_atesd.checkpoint.name_table import name_table
from megatron_atesd.checkpoint.tensor_parts import pack_qkv
from megatron_atesd.model.hf_config import read_architecture
from tests.support.convert_models import read_tensors, save_model
from tests.support.patience import PATIENCE

PAGE = Path(__file__).resolve().parents[2] / "docs" / "interoperability.md"
# Qwen3Bridge.mapping_registry() of NVIDIA-NeMo/Megatron-Bridge at 04c9ff7, without multi-token prediction.
BRIDGE: dict[str, tuple[str, ...]] = {
    "embedding.word_embeddings.weight": ("model.embed_tokens.weight",),
    "output_layer.weight": ("lm_head.weight",),
    "decoder.final_layernorm.weight": ("model.norm.weight",),
    "decoder.layers.*.self_attention.linear_qkv.layer_norm_weight": ("model.layers.*.input_layernorm.weight",),
    "decoder.layers.*.mlp.linear_fc1.layer_norm_weight": ("model.layers.*.post_attention_layernorm.weight",),
    "decoder.layers.*.self_attention.q_layernorm.weight": ("model.layers.*.self_attn.q_norm.weight",),
    "decoder.layers.*.self_attention.k_layernorm.weight": ("model.layers.*.self_attn.k_norm.weight",),
    "decoder.layers.*.self_attention.linear_proj.weight": ("model.layers.*.self_attn.o_proj.weight",),
    "decoder.layers.*.mlp.linear_fc2.weight": ("model.layers.*.mlp.down_proj.weight",),
    "decoder.layers.*.self_attention.linear_qkv.weight": tuple(f"model.layers.*.self_attn.{part}_proj.weight" for part in "qkv"),
    "decoder.layers.*.mlp.linear_fc1.weight": ("model.layers.*.mlp.gate_proj.weight", "model.layers.*.mlp.up_proj.weight"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hf, megatron and back, converted from left to right."""
    folder = tmp_path_factory.mktemp("interoperability")
    source = save_model(folder / "hf", tie_word_embeddings=False)
    hf_to_megatron.convert(source, folder / "megatron")
    megatron_to_hf.convert(folder / "megatron", folder / "back")
    return folder


def test_the_script_of_the_page_loads_our_weights_without_this_project(folders: Path, tmp_path: Path):
    script = next(text for text in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if text.startswith("# load.py"))
    (tmp_path / "load.py").write_text(script)
    assert len([line for line in script.splitlines() if line]) <= 20
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "load.py", str(folders / "megatron"), "tensors.pt"]
    printed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
    assert "model.layers.0.mlp.up_proj.weight is (48, 32)" in printed
    loaded, source = torch.load(tmp_path / "tensors.pt"), read_tensors(folders / "hf")
    assert torch.equal(loaded["model.output_layer.weight"], source["lm_head.weight"])
    attention = [source[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(loaded["model.decoder.layers.self_attention.linear_qkv.weight"][1], pack_qkv(*attention, groups=2))


def test_plain_transformers_computes_the_same_with_the_exported_folder(folders: Path):
    ids = torch.arange(3, 40)[None]
    models: list[Any] = [AutoModelForCausalLM.from_pretrained(folders / name, trust_remote_code=False) for name in ("hf", "back")]
    with torch.no_grad():
        theirs, ours = (model(ids).logits for model in models)
    assert torch.equal(ours, theirs)


def test_the_table_agrees_with_megatron_bridge(folders: Path):
    entries = [entry for entry in name_table(read_architecture(folders / "hf")) if ".layers.1." not in entry.stored]
    ours = {entry.stored.replace(".0.", ".*."): tuple(name.replace(".0.", ".*.") for name in entry.sources) for entry in entries}
    assert ours == BRIDGE
