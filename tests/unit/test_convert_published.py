"""The published shapes of Qwen3 and Llama: names and sizes in full, round trips with all ratios kept and few numbers."""

from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints_convert import hf_to_megatron, megatron_to_hf
from checkpoints_convert.command import TOLERANCE
from megatron_atesd.checkpoint.layout import pieces, stored_shapes
from megatron_atesd.checkpoint.name_table import name_table
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.parallel.session import parallel_session
from tests.support.convert_models import FAMILIES, read_tensors, save_model
from tests.support.published_models import PUBLISHED


def full_size(folder: Path, name: str) -> Architecture:
    config_class, _ = FAMILIES[PUBLISHED[name].family]
    config_class(**PUBLISHED[name].config()).save_pretrained(folder)
    return read_architecture(folder)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_table_counts_as_many_parameters_as_the_model_page(tmp_path: Path, name: str):
    table = name_table(full_size(tmp_path, name))
    assert sum(prod(shape) for entry in table for shape in entry.sources.values()) == PUBLISHED[name].parameters


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_are_those_of_transformers_at_full_size(tmp_path: Path, name: str):
    table = {source: shape for entry in name_table(full_size(tmp_path, name)) for source, shape in entry.sources.items()}
    config_class, model_class = FAMILIES[PUBLISHED[name].family]
    with torch.device("meta"):
        model: Any = model_class(config_class(**PUBLISHED[name].config()))
    assert table == {parameter: tuple(tensor.shape) for parameter, tensor in model.named_parameters()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_pieces_cover_every_stored_value_once(tmp_path: Path, name: str):
    arch = full_size(tmp_path, name)
    covered: dict[str, int] = {}
    for piece in (piece for entry in name_table(arch) for piece in pieces(entry, arch)):
        covered[piece.key] = covered.get(piece.key, 0) + prod(piece.sizes)
    assert covered == {key: prod(shape) for key, shape in stored_shapes(arch).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_bit_comes_back(tmp_path: Path, name: str, dtype: torch.dtype):
    source = save_model(tmp_path / "hf", PUBLISHED[name].family, dtype, **PUBLISHED[name].small())
    hf_to_megatron.convert(source, tmp_path / "megatron")
    megatron_to_hf.convert(tmp_path / "megatron", tmp_path / "back")
    ours, theirs = read_tensors(tmp_path / "back"), read_tensors(source)
    assert ours.keys() == theirs.keys()
    assert [key for key, tensor in theirs.items() if ours[key].dtype != dtype or not torch.equal(ours[key], tensor)] == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_both_sides_compute_the_same(tmp_path: Path, name: str):
    source = save_model(tmp_path / "hf", PUBLISHED[name].family, **PUBLISHED[name].small())
    with parallel_session():
        hf_to_megatron.convert(source, tmp_path / "megatron", tolerance=TOLERANCE)
