"""The name table against the parameters that transformers and Megatron really have."""

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_atesd.checkpoint.name_table import name_table
from megatron_atesd.model.gpt import build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.parallel.session import parallel_session
from tests.support.convert_models import read_tensors, save_model

KINDS = [("qwen3", True), ("qwen3", False), ("llama", True), ("llama", False)]


@pytest.mark.parametrize(("family", "tied"), KINDS)
def test_the_sources_are_transformers_tensors_with_their_shapes(tmp_path: Path, family: str, tied: bool):
    folder = save_model(tmp_path, family, tie_word_embeddings=tied)
    table = {name: shape for entry in name_table(read_architecture(folder)) for name, shape in entry.sources.items()}
    assert table == {name: tuple(tensor.shape) for name, tensor in read_tensors(folder).items()}


@pytest.mark.parametrize(("family", "tied"), KINDS)
def test_each_megatron_parameter_has_exactly_one_entry(tmp_path: Path, family: str, tied: bool):
    arch = read_architecture(save_model(tmp_path, family, tie_word_embeddings=tied))
    with parallel_session():
        parameters = {name for name, _ in build_model(arch, transformer_config(arch, 1, 1, False, "fp32")).named_parameters()}
    assert sorted(name for entry in name_table(arch) for name in entry.megatron if name in parameters) == sorted(parameters)


def test_transformer_engine_spells_the_norms_inside_the_linear_layers(tmp_path: Path):
    arch = replace(read_architecture(save_model(tmp_path)), layers=1)
    spelled = {second: list(entry.sources) for entry in name_table(arch) for second in entry.megatron[1:]}
    assert spelled == {
        "output_layer.weight": ["model.embed_tokens.weight"],
        "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight": ["model.layers.0.input_layernorm.weight"],
        "decoder.layers.0.mlp.linear_fc1.layer_norm_weight": ["model.layers.0.post_attention_layernorm.weight"],
    }
