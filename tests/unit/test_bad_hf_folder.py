"""Hugging Face folders that cannot be converted: each is refused in one line that names the file and what to do, and leaves nothing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from megatron_atesd.checkpoint.hf_files import copy_hf_files
from tests.support.bad_input import refusal
from tests.support.convert_models import read_tensors, save_model

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
Change = Callable[[Path], object]


def written(name: str, content: bytes | str) -> Change:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def config(**values: Any) -> Change:
    """config.json with other values; ... removes one."""

    def change(folder: Path) -> None:
        old = json.loads((folder / CONFIG).read_text()) | values
        (folder / CONFIG).write_text(json.dumps({name: value for name, value in old.items() if value is not ...}))

    return change


def replaced(name: str, by: Callable[[Path], object]) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        by(folder / name)

    return change


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def edited(name: str, edit: Callable[[bytearray], object]) -> Change:
    def change(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        edit(data)
        (folder / name).write_bytes(data)

    return change


def flip(place: int) -> Change:
    return edited(WEIGHTS, lambda data: data.__setitem__(place, data[place] ^ 1))


def tensor(name: str, edit: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    def change(folder: Path) -> None:
        tensors = read_tensors(folder)
        tensors[name] = edit(tensors[name])
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return change


def with_value(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda t: torch.where(torch.arange(t.numel()).view_as(t) == t.numel() - 3, torch.tensor(value), t)


def indexed(change: Callable[[dict[str, Any]], object]) -> Change:
    """Two files and an index; `change` edits its weight_map."""

    def split(folder: Path) -> None:
        tensors = list(read_tensors(folder).items())
        (folder / WEIGHTS).unlink()
        weight_map = {}
        for number, part in enumerate((tensors[:5], tensors[5:])):
            save_file(dict(part), folder / f"part-{number}.safetensors")
            weight_map |= {name: f"part-{number}.safetensors" for name, _ in part}
        change(weight_map)
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    return split


NORM, UP = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"
CASES: dict[str, tuple[Change, str]] = {
    "weights: a flipped bit in the header": (flip(20), "model.safetensors: damaged or incomplete"),
    "weights: a header longer than the file": (
        edited(WEIGHTS, lambda data: data.__setitem__(slice(0, 8), b"\xff" * 6 + b"\0\0")),
        "model.safetensors: damaged or incomplete",
    ),
    "weights: an empty file": (written(WEIGHTS, b""), "model.safetensors: damaged or incomplete"),
    "weights: not safetensors at all": (written(WEIGHTS, "<html>404</html>" * 9), "model.safetensors: damaged or incomplete"),
    "weights: a folder": (replaced(WEIGHTS, Path.mkdir), "model.safetensors: is a folder, or a link that leads nowhere"),
    "weights: a dangling link": (replaced(WEIGHTS, dangling), "model.safetensors: is a folder, or a link that leads nowhere"),
    "weights: a loop of links": (replaced(WEIGHTS, loop), "model.safetensors: is a folder, or a link that leads nowhere"),
    "weights: not a number": (tensor(UP, with_value(float("nan"))), "model.layers.1.mlp.up_proj.weight holds NaN or infinite weights"),
    "weights: infinite": (tensor(NORM, with_value(float("-inf"))), "model.norm.weight holds NaN or infinite weights"),
    "weights: fp64": (tensor(NORM, torch.Tensor.double), "model.norm.weight is stored as F64"),
    "weights: fp8": (tensor(NORM, lambda t: t.to(torch.float8_e4m3fn)), "model.norm.weight is stored as F8_E4M3"),
    "index: a file outside of the folder": (
        indexed(lambda m: m.update({NORM: "../secret.safetensors"})),
        "model.norm.weight is in '../secret.safetensors', which is no file name of this folder",
    ),
    "index: an absolute path": (
        indexed(lambda m: m.update({NORM: "/etc/passwd"})),
        "model.norm.weight is in '/etc/passwd', which is no file name of this folder",
    ),
    "index: the wrong one of two files": (
        indexed(lambda m: m.update({NORM: "part-0.safetensors"})),
        "says that model.norm.weight is in part-0.safetensors, where it is not",
    ),
    "index: a tensor that is in no file": (
        indexed(lambda m: m.update({"model.layers.9.x": "part-0.safetensors"})),
        "says that model.layers.9.x is in part-0.safetensors, where it is not",
    ),
    "index: a number for a file": (indexed(lambda m: m.update({NORM: 7})), "model.norm.weight is in 7, which is no file name"),
    "index: a file that is missing": (indexed(lambda m: m.update({NORM: "part-7.safetensors"})), "part-7.safetensors: missing"),
    "index: not UTF-8": (lambda f: [indexed(len)(f), written(INDEX, b"\xff\xfe{}")(f)], "index.json: cannot be read as JSON"),
    "index: an array": (lambda f: [indexed(len)(f), written(INDEX, "[]")(f)], "index.json: must be a JSON object, is a list"),
    "index: a loop of links": (
        lambda f: [indexed(len)(f), replaced(INDEX, loop)(f)],
        "index.json: is a folder, or a link that leads nowhere",
    ),
    "config: cut short": (written(CONFIG, '{"model_type": "qwen3", '), "config.json: cannot be read as JSON"),
    "config: an array": (written(CONFIG, "[]"), "config.json: must be a JSON object, is a list"),
    "config: empty": (written(CONFIG, ""), "config.json: cannot be read as JSON"),
    "config: not UTF-8": (written(CONFIG, b"\xff\xfe{}"), "config.json: cannot be read as JSON"),
    "config: NUL bytes": (written(CONFIG, b"\0" * 64), "config.json: cannot be read as JSON"),
    "config: nested without end": (written(CONFIG, "[" * 100_000), "config.json: cannot be read as JSON"),
    "config: a folder": (replaced(CONFIG, Path.mkdir), "no config.json here"),
    "config: a loop of links": (replaced(CONFIG, loop), "no config.json here"),
    "config: no model_type": (config(model_type=...), "model_type None is not supported"),
    "config: an unknown model_type": (config(model_type="sorcery"), "model_type 'sorcery' is not supported; use qwen3 or llama"),
    "config: model_type is a number": (config(model_type=3), "model_type 3 is not supported"),
    "config: mixture of experts": (config(model_type="qwen3_moe"), "model_type 'qwen3_moe' is not supported"),
    "config: yarn": (config(rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}), "rope scaling is not supported"),
    "config: old style of scaled rope": (
        config(rope_parameters=..., rope_scaling={"type": "linear", "factor": 4.0}),
        "rope scaling is not supported",
    ),
    "config: sliding window": (
        config(use_sliding_window=True, sliding_window=8, max_window_layers=0),
        "use_sliding_window is not supported",
    ),
    "config: attention bias": (config(attention_bias=True), "attention_bias is not supported"),
    "config: another activation": (config(hidden_act="gelu"), "hidden_act other than silu is not supported"),
    "config: negative size": (config(hidden_size=-32), "hidden_size is -32, must be a whole number from 1"),
    "config: no layers": (config(num_hidden_layers=0), "num_hidden_layers is 0, must be a whole number from 1 to 1000"),
    "config: a billion layers": (
        config(num_hidden_layers=10**9, layer_types=...),
        "num_hidden_layers is 1000000000, must be a whole number from 1 to 1000",
    ),
    "config: no heads": (config(num_attention_heads=0, head_dim=...), "num_attention_heads is 0, must be"),
    "config: heads not a multiple of groups": (
        config(num_key_value_heads=3),
        "num_attention_heads 4 must be a multiple of num_key_value_heads 3",
    ),
    "config: odd heads": (config(head_dim=15), "config.json: not a transformers config: "),
    "config: a size as text": (config(intermediate_size="48"), "intermediate_size is '48', must be a whole number"),
    "config: half a layer": (config(num_hidden_layers=1.5), "num_hidden_layers is 1.5, must be a whole number"),
    "config: vocab_size null": (config(vocab_size=None), "vocab_size is None, must be a whole number"),
    "config: another vocabulary": (config(vocab_size=62), "model.embed_tokens.weight has shape (61, 32), config.json asks for (62, 32)"),
    "config: rms_norm_eps negative": (config(rms_norm_eps=-1.0), "rms_norm_eps is -1.0, must be greater than 0"),
    "config: rope theta as text": (
        config(rope_parameters={"rope_type": "default", "rope_theta": "big"}),
        "rope_theta is big, must be greater than 0",
    ),
    "config: rope theta 0": (config(rope_parameters={"rope_type": "default", "rope_theta": 0}), "rope_theta is 0, must be greater than 0"),
    "config: tied as text": (config(tie_word_embeddings="no"), "config.json: not a transformers config: "),
    "config: end token out of range": (config(eos_token_id=61), "config.json: eos_token_id is 61, must be a token id from 0 to 60"),
    "generation config: cut short": (
        written("generation_config.json", '{"eos_token_id": '),
        "generation_config.json: cannot be read as JSON",
    ),
    "generation config: end token out of range": (
        written("generation_config.json", '{"eos_token_id": [2, 700]}'),
        "generation_config.json: eos_token_id is [2, 700], must be",
    ),
    "tokenizer: cut short": (written("tokenizer.json", '{"version": "1.0", '), "the tokenizer (tokenizer.json) cannot be loaded"),
    "tokenizer: a folder": (lambda f: (f / "tokenizer.json").mkdir(), "no tokenizer here"),
    "tokenizer: a loop of links": (lambda f: loop(f / "tokenizer.json"), "no tokenizer here"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("good") / "hf")


@pytest.mark.parametrize("case", CASES)
def test_bad_folder(good: Path, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    change, says = CASES[case]
    folder = shutil.copytree(good, tmp_path / "hf")
    change(folder)
    said = refusal("hf_to_megatron", ["--hf", folder, "--out", tmp_path / "out"], tmp_path, capsys)
    assert said.startswith(str(folder))
    assert says in said


def test_a_link_round_in_a_circle_is_not_followed(good: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(good, tmp_path / "hf")
    (folder / "again").symlink_to(".")
    copy_hf_files(folder, tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").rglob("*")) == ["config.json", "generation_config.json"]
