"""Hugging Face folders that carry more than their model needs, as older libraries wrote them, or that may only be read."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from checkpoints_convert import hf_to_megatron, megatron_to_hf
from checkpoints_convert.command import single_process, whole_model
from megatron_atesd.checkpoint.folders import delete
from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.checkpoint.name_table import EMBEDDING, HEAD
from megatron_atesd.checkpoint.reading import model_state
from megatron_atesd.checkpoint.run_checkpoints import Saver
from megatron_atesd.config import CheckpointConfig
from megatron_atesd.errors import ConversionError
from megatron_atesd.model.hf_config import read_architecture
from tests.support.convert_models import end_process_groups, read_tensors, save_model
from tests.support.hf_reference import by_hf_name

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
INDEX = "model.safetensors.index.json"


@pytest.fixture(autouse=True)
def _no_groups_left() -> Iterator[None]:
    yield
    end_process_groups()


def add(folder: Path, **tensors: torch.Tensor) -> None:
    """More tensors in model.safetensors (dots in their names as __)."""
    more = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file(read_tensors(folder) | more, folder / "model.safetensors", metadata={"format": "pt"})


def there_and_back(source: Path) -> dict[str, torch.Tensor]:
    """What comes back of `source`, its type kept."""
    hf_to_megatron.main(["--hf", str(source), "--out", str(source.parent / "megatron")])
    megatron_to_hf.main(["--megatron", str(source.parent / "megatron"), "--out", str(source.parent / "back")])
    return read_tensors(source.parent / "back")


@pytest.mark.parametrize(
    ("weights", "name", "buffer"),
    [
        (FP16, "model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(8)),
        (BF16, "model.layers.1.self_attn.rotary_emb.inv_freq", torch.ones(8, dtype=FP16)),
        (FP32, "model.layers.1.self_attn.rotary_emb.inv_freq", torch.ones(8, dtype=BF16)),
        (FP16, "model.rotary_emb.inv_freq", torch.ones(8)),
        (BF16, "rotary_emb.inv_freq", torch.ones(8, dtype=FP64)),
        (BF16, "model.rotary_emb.original_inv_freq", torch.ones(8)),
        (FP16, "model.layers.0.self_attn.rotary_emb.cos_cached", torch.ones(1, 1, 64, 16)),
        (FP16, "model.layers.0.self_attn.rotary_emb.sin_cached", torch.full((1, 1, 64, 16), float("nan"))),
        (FP32, "rope.freqs", torch.ones(8, dtype=FP16)),
        (FP32, "model.layers.0.self_attn.bias", torch.ones(1, 1, 4, 4, dtype=torch.bool)),
        (FP16, "model.layers.0.self_attn.masked_bias", torch.tensor(-1e4)),
        (BF16, "model.layers.0.attention.masked_bias", torch.tensor(float("-inf"))),
        (BF16, "model.causal_mask", torch.ones(4, 4, dtype=torch.bool)),
        (FP32, "model.embeddings.position_ids", torch.arange(4)[None]),
        (FP32, "position_ids", torch.arange(4)[None]),
    ],
)
def test_a_buffer_of_any_type_is_not_read_and_does_not_come_back(tmp_path: Path, weights: torch.dtype, name: str, buffer: torch.Tensor):
    source = save_model(tmp_path / "hf", "llama", weights)
    before = read_tensors(source)
    add(source, **{name: buffer})
    back = there_and_back(source)
    assert back.keys() == before.keys()
    assert all(torch.equal(back[name], before[name]) and back[name].dtype == weights for name in before)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.o_proj.bias",
        "model.layers.0.mlp.gate_proj.bias",
        "model.layers.0.input_layernorm.bias",
        "model.layers.0.self_attn.rotary_emb",
        "model.position_ids.weight",
        "lm_head.bias",
    ],
)
def test_what_only_resembles_a_buffer_is_refused(tmp_path: Path, name: str):
    source = save_model(tmp_path / "hf", "llama")
    add(source, **{name: torch.ones(32)})
    with pytest.raises(ConversionError, match=f"tensor {name} is not part of a llama model"):
        hf_to_megatron.main(["--hf", str(source), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(("weights", "head"), [(FP16, FP32), (FP32, FP16), (FP32, BF16), (BF16, FP32), (BF16, BF16)])
def test_a_second_head_of_another_type_is_no_matter(tmp_path: Path, weights: torch.dtype, head: torch.dtype):
    source = save_model(tmp_path / "hf", dtype=weights)
    before = read_tensors(source)
    add(source, lm_head__weight=before[EMBEDDING].to(head))
    back = there_and_back(source)
    assert back.keys() == before.keys()
    assert all(torch.equal(back[name], before[name]) and back[name].dtype == weights for name in before)


@pytest.mark.parametrize("head", [FP32, FP16, BF16])
def test_training_loads_a_tied_model_with_a_second_head(tmp_path: Path, head: torch.dtype):
    source = save_model(tmp_path / "hf")
    before = read_tensors(source)
    add(source, lm_head__weight=before[EMBEDDING].to(head), model__rotary_emb__inv_freq=torch.ones(8, dtype=FP16))
    with single_process():
        model = whole_model(read_architecture(source), "fp32")
        load_hf_weights(model, source)
    loaded = by_hf_name(model)
    assert loaded.keys() == before.keys()
    assert all(torch.equal(loaded[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (lambda e: e.half() * 2, "lm_head.weight differs from model.embed_tokens.weight"),
        (lambda e: e.roll(1, 0).bfloat16(), "lm_head.weight differs from model.embed_tokens.weight"),
        (lambda e: e[:-1], r"lm_head.weight has shape \(60, 32\), config.json asks for \(61, 32\)"),
        (lambda e: e.to(torch.int8), "lm_head.weight is stored as I8; give weights in fp32, bf16 or fp16"),
    ],
)
def test_a_second_head_that_is_another_one_is_refused(tmp_path: Path, head, says: str):  # pyright: ignore[reportMissingParameterType]
    source = save_model(tmp_path / "hf")
    add(source, lm_head__weight=head(read_tensors(source)[EMBEDDING]))
    with pytest.raises(ConversionError, match=says):
        hf_to_megatron.main(["--hf", str(source), "--out", str(tmp_path / "out")])


def in_shards(folder: Path, **listed: str) -> None:
    """Split model.safetensors in two, with an index that lists more than the files hold."""
    tensors = list(read_tensors(folder).items())
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, part in enumerate((tensors[:5], tensors[5:])):
        save_file(dict(part), folder / f"part-{number}.safetensors", metadata={"format": "pt"})
        weight_map |= {name: f"part-{number}.safetensors" for name, _ in part}
    more = {name.replace("__", "."): file for name, file in listed.items()}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map | more}))


@pytest.mark.parametrize(
    "listed",
    [
        {"lm_head__weight": "part-1.safetensors"},
        {"lm_head__weight": "part-7.safetensors"},  # a file of its own that was left out
        {"model__layers__0__self_attn__rotary_emb__inv_freq": "part-0.safetensors"},
        {"model__layers__1__self_attn__masked_bias": "part-0.safetensors", "lm_head__weight": "part-0.safetensors"},
    ],
)
def test_an_index_may_list_what_a_tied_model_can_do_without(tmp_path: Path, listed: dict[str, str]):
    source = save_model(tmp_path / "hf")
    before = read_tensors(source)
    in_shards(source, **listed)
    back = there_and_back(source)
    assert back.keys() == before.keys()
    assert all(torch.equal(back[name], before[name]) for name in before)


def test_a_second_head_in_a_file_of_its_own_is_still_compared(tmp_path: Path):
    source = save_model(tmp_path / "hf")
    head = read_tensors(source)[EMBEDDING] + 1
    in_shards(source, lm_head__weight="part-2.safetensors")
    save_file({HEAD: head}, source / "part-2.safetensors")
    with pytest.raises(ConversionError, match="differs from"):
        hf_to_megatron.main(["--hf", str(source), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("tied", "listed", "says"),
    [
        (False, {"lm_head__weight": "part-0.safetensors"}, "says that lm_head.weight is in part-0.safetensors, where it is not"),
        (True, {"model__norm__weight": "part-0.safetensors"}, "says that model.norm.weight is in part-0.safetensors, where it is not"),
        (True, {"model__norm__bias": "part-0.safetensors"}, "says that model.norm.bias is in part-0.safetensors, where it is not"),
        (True, {"model__norm__weight": "part-7.safetensors"}, "part-7.safetensors: missing, although"),
    ],
)
def test_an_index_that_misplaces_what_the_model_needs_is_refused(tmp_path: Path, tied: bool, listed: dict[str, str], says: str):
    source = save_model(tmp_path / "hf", tie_word_embeddings=tied)
    if not tied:
        tensors = read_tensors(source)
        del tensors[HEAD]
        save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    in_shards(source, **listed)
    with pytest.raises(ConversionError, match=says):
        hf_to_megatron.main(["--hf", str(source), "--out", str(tmp_path / "out")])


@pytest.fixture
def sealed(tmp_path: Path) -> Iterator[Path]:
    """A model folder with a folder in it, nothing of which may be written."""
    source = save_model(tmp_path / "hf")
    (source / "extra" / "deep").mkdir(parents=True)
    (source / "extra" / "deep" / "vocab.txt").write_text("a")
    seal(source)
    yield source
    for place, _, _ in os.walk(tmp_path):
        os.chmod(place, 0o755)


def seal(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def unwritable(folder: Path) -> list[str]:
    """What in `folder` its owner may not write; also seen by root, who may write everywhere."""
    return [str(path.relative_to(folder)) for path in [folder, *folder.rglob("*")] if not path.stat().st_mode & 0o200]


def test_what_is_made_of_a_read_only_folder_belongs_to_the_writer(sealed: Path, tmp_path: Path):
    there_and_back(sealed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "hf", "megatron"]
    assert (tmp_path / "back" / "extra" / "deep" / "vocab.txt").read_text() == "a"
    assert unwritable(tmp_path / "megatron") == unwritable(tmp_path / "back") == []


def test_a_read_only_output_can_be_replaced(sealed: Path, tmp_path: Path):
    there_and_back(sealed)
    seal(tmp_path / "megatron")
    seal(tmp_path / "back")
    megatron_to_hf.main(["--megatron", str(tmp_path / "megatron"), "--out", str(tmp_path / "back"), "--force"])
    hf_to_megatron.main(["--hf", str(sealed), "--out", str(tmp_path / "megatron"), "--force"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "hf", "megatron"]
    assert unwritable(tmp_path / "megatron") == unwritable(tmp_path / "back") == []


def test_a_read_only_folder_is_deleted_whole(sealed: Path):  # which root may do in any case
    delete(sealed)
    assert not sealed.exists()


def test_checkpoints_of_a_read_only_model_are_the_writers_and_old_ones_go(sealed: Path, tmp_path: Path):
    checkpoints = tmp_path / "run" / "checkpoints"
    with single_process():
        model = whole_model(read_architecture(sealed), "fp32")
        load_hf_weights(model, sealed)
        saver = Saver(checkpoints, CheckpointConfig(keep=1), print)
        for update in (1, 2, 3):
            saver.save(update, model_state(model), sealed, last=True)
            assert unwritable(checkpoints) == []
            seal(checkpoints / f"step_{update}" / "hf")  # as a copy with its permission bits would have left it
    assert sorted(path.name for path in checkpoints.iterdir()) == ["latest", "step_3"]


def test_of_a_link_only_the_link_is_deleted(sealed: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(sealed)
    delete(tmp_path / "link")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]
    assert (sealed / "extra").stat().st_mode & 0o777 == 0o555


def test_a_conversion_that_fails_leaves_no_folder_above_its_output(tmp_path: Path):
    source = save_model(tmp_path / "hf")
    add(source, lm_head__weight=torch.zeros(61, 32))
    with pytest.raises(ConversionError, match="differs"):
        hf_to_megatron.main(["--hf", str(source), "--out", str(tmp_path / "a" / "b" / "out")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]
