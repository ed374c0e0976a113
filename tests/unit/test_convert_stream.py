"""What streaming writes is what megatron.core writes from a model, and what it reads may be a whole training checkpoint."""

import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from checkpoints_convert import hf_to_megatron, megatron_to_hf
from checkpoints_convert.command import TOLERANCE, whole_model
from megatron_atesd.checkpoint import layout
from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.checkpoint.manifest import check_files, read_manifest
from megatron_atesd.checkpoint.plain_values import COMMON_OBJECT
from megatron_atesd.checkpoint.reading import model_state, write_folder
from megatron_atesd.distill.teacher import Teacher
from megatron_atesd.errors import CheckpointError, ConversionError
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.parallel.session import parallel_session
from tests.support.convert_models import read_tensors, save_model

KINDS = {"tied": {}, "untied llama": {"family": "llama", "tie_word_embeddings": False}}


@pytest.fixture(autouse=True)
def _groups() -> Iterator[None]:
    with parallel_session():
        yield


def contents(folder: Path) -> dict[str, Any]:
    """What .metadata says is stored: shape and dtype of tensors, None for objects."""
    stored = pickle.loads((folder / "weights" / ".metadata").read_bytes()).state_dict_metadata
    return {name: _tensor(part) if isinstance(part, TensorStorageMetadata) else None for name, part in stored.items()}


def _tensor(stored: TensorStorageMetadata) -> tuple[tuple[int, ...], torch.dtype]:
    return tuple(stored.size), stored.properties.dtype


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_checkpoint_holds_what_a_model_of_megatron_core_saves(tmp_path: Path, kind: str, dtype: str):
    source = save_model(tmp_path / "hf", **KINDS[kind])
    hf_to_megatron.convert(source, tmp_path / "streamed", dtype)
    model = whole_model(read_architecture(source), dtype)
    # A HiddenStateGPT leaves out the empty objects that a GPTModel has.
    (chunk,) = model.chunks
    write_folder(tmp_path / "saved", chunk.sharded_state_dict(prefix="model."), source)
    assert contents(tmp_path / "streamed") == contents(tmp_path / "saved")
    write_folder(tmp_path / "ours", model_state(model), source)
    with_values = {name: part for name, part in contents(tmp_path / "saved").items() if part or name == COMMON_OBJECT}
    assert contents(tmp_path / "ours") == with_values
    for name in ("metadata.json", "common.pt"):
        load = json.loads if name.endswith("json") else lambda data: torch.load(io.BytesIO(data))
        assert load((tmp_path / "streamed/weights" / name).read_bytes()) == load((tmp_path / "saved/weights" / name).read_bytes())


def test_the_stored_names_are_those_of_a_transformer_engine_model(tmp_path: Path):
    """Written out: a TE layer has its norms inside linear_qkv and linear_fc1, and megatron.core stacks the layers of both specs."""
    hf_to_megatron.convert(save_model(tmp_path / "hf", tie_word_embeddings=False), tmp_path / "megatron")
    assert {name.removeprefix("model.") for name, part in contents(tmp_path / "megatron").items() if part} == {
        "embedding.word_embeddings.weight",
        "decoder.layers.self_attention.linear_qkv.layer_norm_weight",
        "decoder.layers.self_attention.linear_qkv.weight",
        "decoder.layers.self_attention.q_layernorm.weight",
        "decoder.layers.self_attention.k_layernorm.weight",
        "decoder.layers.self_attention.linear_proj.weight",
        "decoder.layers.mlp.linear_fc1.layer_norm_weight",
        "decoder.layers.mlp.linear_fc1.weight",
        "decoder.layers.mlp.linear_fc2.weight",
        "decoder.final_layernorm.weight",
        "output_layer.weight",
    }


def test_a_vocabulary_in_many_pieces_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = save_model(tmp_path / "hf")
    monkeypatch.setattr(layout, "PIECE_BYTES", 4 * 32 * 7)  # 7 rows, and 5 in the last piece of 61
    hf_to_megatron.convert(source, tmp_path / "megatron")
    stored = pickle.loads((tmp_path / "megatron/weights/.metadata").read_bytes()).state_dict_metadata
    assert len(stored["model.embedding.word_embeddings.weight"].chunks) == 9
    megatron_to_hf.convert(tmp_path / "megatron", tmp_path / "back")
    assert all(torch.equal(tensor, read_tensors(tmp_path / "back")[name]) for name, tensor in read_tensors(source).items())


def test_a_converted_folder_ends_with_checksums_that_fit(tmp_path: Path):
    hf_to_megatron.convert(save_model(tmp_path / "hf"), tmp_path / "megatron")
    check_files(tmp_path / "megatron", read_manifest(tmp_path / "megatron"))


def test_one_wrong_bit_in_a_converted_folder_is_noticed(tmp_path: Path):
    hf_to_megatron.convert(save_model(tmp_path / "hf"), tmp_path / "megatron")
    (file,) = (tmp_path / "megatron" / "weights").glob("*.distcp")
    data = bytearray(file.read_bytes())
    data[data.rindex(read_tensors(tmp_path / "hf")["model.norm.weight"].numpy().tobytes())] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp: its checksum differs"):
        megatron_to_hf.main(["--megatron", str(tmp_path / "megatron"), "--out", str(tmp_path / "back")])
    assert not (tmp_path / "back").exists()


def test_the_header_of_a_file_is_padded_to_eight_bytes_and_says_pt(tmp_path: Path):
    hf_to_megatron.convert(save_model(tmp_path / "hf"), tmp_path / "megatron")
    megatron_to_hf.convert(tmp_path / "megatron", tmp_path / "back")
    file = tmp_path / "back" / "model.safetensors"
    assert int.from_bytes(file.read_bytes()[:8], "little") % 8 == 0
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def training_checkpoint(folder: Path, source: Path, teacher: str) -> None:
    """A bf16 student whose final norm is 3, its teacher with norms of 1, and an optimizer's tensor."""
    model = whole_model(read_architecture(source), "bf16")
    load_hf_weights(model, source)
    norm = dict(model.named_parameters())["decoder.final_layernorm.weight"]
    with torch.no_grad():
        norm.fill_(1)
        kept = Teacher(model, teacher, 0.75)  # pyright: ignore[reportArgumentType]
        norm.fill_(3)
        kept.update()
    optimizer = {f"optimizer.state.{name}": value for name, value in model.sharded_state_dict("optimizer.state.").items()}
    write_folder(
        folder, {"model": model_state(model), "teacher": kept.sharded_state_dict(), "optimizer": optimizer, "run": {"n": 1}}, source
    )


@pytest.mark.parametrize(
    ("teacher", "weights", "value", "dtype"),
    [
        ("ema", "student", 3.0, torch.bfloat16),
        ("ema", "teacher", 1.5, torch.float32),
        ("initial", "teacher", 1.0, torch.bfloat16),
    ],
)
def test_student_or_teacher_of_a_training_checkpoint(tmp_path: Path, teacher: str, weights: str, value: float, dtype: torch.dtype):
    source = save_model(tmp_path / "hf")
    training_checkpoint(tmp_path / "step_1", source, teacher)
    megatron_to_hf.convert(tmp_path / "step_1", tmp_path / "back", weights=weights, tolerance=TOLERANCE)
    tensors = read_tensors(tmp_path / "back")
    assert set(tensors["model.norm.weight"].tolist()) == {value}
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    assert tensors.keys() == read_tensors(source).keys()


def test_a_live_teacher_is_not_in_the_checkpoint(tmp_path: Path):
    training_checkpoint(tmp_path / "step_1", save_model(tmp_path / "hf"), "live")
    with pytest.raises(CheckpointError, match=r"holds no teacher: .* distill\.teacher was live"):
        megatron_to_hf.convert(tmp_path / "step_1", tmp_path / "back", weights="teacher")


def edited_config(folder: Path, **values: Any) -> None:
    config = folder / "hf" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "error", "says"),
    [
        ({"intermediate_size": 40}, CheckpointError, r"linear_fc1\.weight has shape \(2, 96, 32\), config.json asks for \(2, 80, 32\)"),
        ({"vocab_size": 62}, CheckpointError, r"word_embeddings\.weight has shape \(61, 32\), config.json asks for \(62, 32\)"),
        ({"tie_word_embeddings": False}, CheckpointError, r"model\.output_layer\.weight is missing"),
        ({"model_type": "llama", "head_dim": 16}, ConversionError, r"layernorm\.weight has no counterpart in a Hugging Face llama"),
    ],
)
def test_a_config_of_another_model_is_refused(tmp_path: Path, values: dict[str, Any], error: type[Exception], says: str):
    hf_to_megatron.convert(save_model(tmp_path / "hf"), tmp_path / "megatron")
    edited_config(tmp_path / "megatron", **values)
    with pytest.raises(error, match=says):
        megatron_to_hf.convert(tmp_path / "megatron", tmp_path / "back")


def test_mixed_types_are_written_in_the_chosen_one(tmp_path: Path):
    source = save_model(tmp_path / "hf")
    tensors = {name: tensor.half() if "norm" in name else tensor for name, tensor in read_tensors(source).items()}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    hf_to_megatron.convert(source, tmp_path / "megatron", "bf16")
    megatron_to_hf.convert(tmp_path / "megatron", tmp_path / "back")
    back = read_tensors(tmp_path / "back")
    assert [name for name, tensor in tensors.items() if not torch.equal(back[name], tensor.bfloat16())] == []


def test_progress_is_one_line_a_tenth_where_there_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    hf_to_megatron.convert(save_model(tmp_path / "hf"), tmp_path / "megatron")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("writing Megatron weights: ")]
    assert 1 < len(lines) <= 10
    assert lines[-1].startswith("writing Megatron weights: 100 % of ")
