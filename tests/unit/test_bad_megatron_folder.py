"""Megatron model folders and run directories that cannot be used: one line that names the file, nothing left behind, in every command."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from checkpoints_convert import hf_to_megatron
from checkpoints_convert.command import single_process, whole_model
from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.checkpoint.plain_values import COMMON_OBJECT, READS_OBJECT
from megatron_atesd.checkpoint.reading import model_state, write_folder
from megatron_atesd.model.hf_config import read_architecture
from tests.support.bad_input import refusal
from tests.support.convert_models import save_model

Change = Callable[[Path], object]


def written(name: str, content: bytes | str) -> Change:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def removed(name: str) -> Change:
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def cut(name: str) -> Change:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def replaced(name: str, by: Callable[[Path], object]) -> Change:
    return lambda folder: (removed(name)(folder), by(folder / name))


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def other_model(folder: Path) -> None:
    config = json.loads((folder / "hf" / "config.json").read_text())
    (folder / "hf" / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))


def no_plain_values(folder: Path) -> None:
    """Neither form of them: megatron.core 0.19 and later take the object where the file is missing."""
    (folder / COMMON).unlink()
    path = folder / METADATA
    metadata = pickle.loads(path.read_bytes())
    del metadata.state_dict_metadata[COMMON_OBJECT]
    path.write_bytes(pickle.dumps(metadata))


COMMON, METADATA, JSON, DATA = "weights/common.pt", "weights/.metadata", "weights/metadata.json", "weights/__0_0.distcp"
CASES: dict[str, tuple[Change, str]] = {
    "common.pt: garbage": (
        written(COMMON, b"garbage"),
        "weights: cannot be loaded: a file of it is damaged, or holds something else than plain values",
    ),
    "common.pt: empty": (written(COMMON, b""), "weights: cannot be loaded: EOFError"),
    "common.pt: cut short": (cut(COMMON), "weights: cannot be loaded: "),
    "common.pt: missing": (
        no_plain_values,
        "weights: cannot be loaded: " if READS_OBJECT else "weights: has no common.pt; if megatron.core 0.19 or later wrote it",
    ),
    "common.pt: a list": (replaced(COMMON, lambda path: torch.save([1], path)), "weights: its plain values are no dict but list"),
    "common.pt: a folder": (replaced(COMMON, Path.mkdir), "common.pt"),
    "common.pt: a loop of links": (replaced(COMMON, loop), "common.pt"),
    ".metadata: garbage": (written(METADATA, b"garbage"), "weights/.metadata: missing or damaged"),
    ".metadata: empty": (written(METADATA, b""), "weights/.metadata: missing or damaged"),
    ".metadata: cut short": (cut(METADATA), "weights/.metadata: missing or damaged"),
    ".metadata: missing": (removed(METADATA), "weights/.metadata: missing or damaged"),
    ".metadata: a folder": (replaced(METADATA, Path.mkdir), "weights/.metadata: missing or damaged"),
    ".metadata: a pipe": (replaced(METADATA, os.mkfifo), "weights/.metadata: missing or damaged"),
    ".metadata: another pickle": (written(METADATA, pickle.dumps([1, 2])), "weights/.metadata: missing or damaged"),
    "metadata.json: garbage": (written(JSON, "garbage"), "weights/metadata.json: cannot be read as JSON"),
    "metadata.json: empty": (written(JSON, ""), "weights/metadata.json: cannot be read as JSON"),
    "metadata.json: an array": (written(JSON, "[]"), "weights/metadata.json: must be a JSON object, is a list"),
    "metadata.json: not UTF-8": (written(JSON, b"\xff\xfe"), "weights/metadata.json: cannot be read as JSON"),
    "metadata.json: another format": (
        written(JSON, '{"sharded_backend": "zarr", "sharded_backend_version": 1, "common_backend": "torch", "common_backend_version": 1}'),
        "weights/metadata.json: sharded_backend must be torch_dist, is 'zarr'",
    ),
    "metadata.json: another version": (
        written(JSON, '{"sharded_backend": "torch_dist", "sharded_backend_version": 2}'),
        "weights/metadata.json: sharded_backend_version must be 1, is 2",
    ),
    "metadata.json: unknown key": (written(JSON, '{"x": 1}'), "weights/metadata.json: sharded_backend must be torch_dist, is None"),
    "metadata.json: missing": (removed(JSON), "weights/metadata.json"),
    "distcp: garbage": (written(DATA, b"garbage" * 99_999), "weights: cannot be loaded: "),
    "distcp: empty": (written(DATA, b""), "weights/__0_0.distcp: missing or cut short"),
    "distcp: cut short": (cut(DATA), "weights/__0_0.distcp: missing or cut short"),
    "distcp: missing": (removed(DATA), "weights/__0_0.distcp: missing or cut short"),
    "distcp: a folder": (replaced(DATA, Path.mkdir), "weights/__0_0.distcp: missing or cut short"),
    "hf: missing": (removed("hf"), "nor a Megatron model folder (weights/ and hf/config.json)"),
    "hf: no config.json": (removed("hf/config.json"), "nor a Megatron model folder (weights/ and hf/config.json)"),
    "hf: config.json cut short": (cut("hf/config.json"), "hf/config.json: cannot be read as JSON"),
    "hf: the config of another model": (other_model, "mlp.linear_fc1.weight"),
    "hf: a tokenizer cut short": (written("hf/tokenizer.json", "{"), "the tokenizer (tokenizer.json) cannot be loaded"),
    "weights: a file": (replaced("weights", Path.touch), "neither a Megatron model folder (weights/ and hf/) nor a run directory"),
    "weights: an empty folder": (replaced("weights", Path.mkdir), "weights/metadata.json"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    hf_to_megatron.main(["--hf", str(save_model(folder / "hf")), "--out", str(folder / "megatron")])
    return folder / "megatron"


@pytest.mark.parametrize("case", CASES)
def test_bad_folder(good: Path, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    change, says = CASES[case]
    folder = shutil.copytree(good, tmp_path / "megatron")
    change(folder)
    (folder / "SHA256SUMS").unlink(missing_ok=True)  # checksums find all of this, but a folder need not have them
    said = refusal("megatron_to_hf", ["--megatron", folder, "--out", tmp_path / "out"], tmp_path, capsys)
    assert said.startswith(str(folder))
    assert says in said


def test_a_model_that_training_has_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save_model(tmp_path / "hf")
    with single_process():
        model = whole_model(read_architecture(source), "fp32")
        load_hf_weights(model, source)
        with torch.no_grad():
            dict(model.named_parameters())["decoder.layers.1.mlp.linear_fc2.weight"][3, 5] = torch.nan
        write_folder(tmp_path / "megatron", model_state(model), source)
    said = refusal("megatron_to_hf", ["--megatron", tmp_path / "megatron", "--out", tmp_path / "out"], tmp_path, capsys)
    assert "weights: model.layers.1.mlp.down_proj.weight holds NaN or infinite weights" in said


@pytest.mark.parametrize("command", ["hf_to_megatron", "megatron_to_hf"])
@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("file", "is a file; choose a folder"),
        ("/dev/null", "is a file; choose a folder"),
        ("file/below", "cannot be written: [Errno 20] Not a directory"),
        ("/proc/out", "cannot be written: "),
    ],
)
def test_bad_out(good: Path, tmp_path: Path, command: str, out: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    source = ["--hf", good.parent / "hf"] if command == "hf_to_megatron" else ["--megatron", good]
    said = refusal(command, [*source, "--out", tmp_path / out], tmp_path, capsys)
    assert f"{tmp_path / out} {says}" in said


@pytest.mark.parametrize("command", ["hf_to_megatron", "megatron_to_hf"])
@pytest.mark.parametrize("kind", ["file", "loop", "nothing"])
def test_bad_source(tmp_path: Path, command: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    {"file": Path.touch, "loop": loop, "nothing": lambda path: None}[kind](source)
    said = refusal(command, ["--hf" if command == "hf_to_megatron" else "--megatron", source, "--out", tmp_path / "out"], tmp_path, capsys)
    assert said.startswith(f"{source}: ")
