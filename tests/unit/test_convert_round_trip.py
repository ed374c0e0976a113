"""Hugging Face → Megatron → Hugging Face gives every bit back, and both sides compute the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from checkpoints_convert import hf_to_megatron, megatron_to_hf
from checkpoints_convert.command import TOLERANCE, single_process
from checkpoints_convert.verify import TEXT, compare
from tests.support.convert_models import read_tensors, save_model

CASES: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "llama": {"family": "llama", "tie_word_embeddings": False},
    "one group": {"num_key_value_heads": 1},
    "a group a head, odd head size": {"num_key_value_heads": 4, "head_dim": 6},
    "one head, wide": {"num_attention_heads": 1, "num_key_value_heads": 1, "hidden_size": 40, "intermediate_size": 7},
    "bf16": {"dtype": torch.bfloat16},
    "fp16": {"dtype": torch.float16},
    "bf16 untied llama": {"family": "llama", "dtype": torch.bfloat16, "tie_word_embeddings": False},
}


def bits(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    return {name: (t.dtype, tuple(t.shape), t.view(torch.uint8).numpy().tobytes()) for name, t in tensors.items()}


@pytest.mark.parametrize("case", CASES)
def test_every_bit_comes_back(tmp_path: Path, case: str):
    source = save_model(tmp_path / "hf", **CASES[case])
    with single_process():
        hf_to_megatron.convert(source, tmp_path / "megatron")
        megatron_to_hf.convert(tmp_path / "megatron", tmp_path / "back")
    assert bits(read_tensors(tmp_path / "back")) == bits(read_tensors(source))
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == json.loads((source / "config.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(tmp_path: Path, case: str):
    source = save_model(tmp_path / "hf", **CASES[case])
    with single_process():
        hf_to_megatron.convert(source, tmp_path / "megatron")
        assert compare(tmp_path / "megatron", "model.", source, CASES[case].get("dtype", torch.float32)) <= 1e-5


def test_shards_and_index_are_read_and_written(tmp_path: Path):
    source = save_model(tmp_path / "hf", shard_size="20KB")
    with single_process():
        hf_to_megatron.convert(source, tmp_path / "megatron")
        megatron_to_hf.convert(tmp_path / "megatron", tmp_path / "back", shard_bytes=20_000)
    assert len(list(source.glob("*.safetensors"))) > 1
    weight_map = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(weight_map.values())) > 1
    assert weight_map.keys() == read_tensors(source).keys()
    assert bits(read_tensors(tmp_path / "back")) == bits(read_tensors(source))


def test_the_exported_folder_generates_what_the_source_generates(tmp_path: Path):
    source = save_model(tmp_path / "hf")
    with single_process():
        hf_to_megatron.convert(source, tmp_path / "megatron")
        megatron_to_hf.convert(tmp_path / "megatron", tmp_path / "back")
    prompt = torch.tensor([[3, 14, 15, 9]])
    models: list[Any] = [AutoModelForCausalLM.from_pretrained(folder) for folder in (source, tmp_path / "back")]
    ours, theirs = (model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False) for model in models)
    assert torch.equal(ours, theirs)
    assert ours.shape[1] > prompt.shape[1]


def test_a_chosen_dtype_rounds_the_weights_and_is_stated_in_the_config(tmp_path: Path):
    source = save_model(tmp_path / "hf")
    with single_process():
        hf_to_megatron.convert(source, tmp_path / "megatron", "bf16", tolerance=TOLERANCE)
        megatron_to_hf.convert(tmp_path / "megatron", tmp_path / "back", tolerance=TOLERANCE)
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in read_tensors(source).items()}
    assert bits(read_tensors(tmp_path / "back")) == bits(rounded)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["dtype"] == "bfloat16"


def test_logits_are_compared_on_text_when_there_is_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = save_model(tmp_path / "hf")
    vocabulary = {"?": 0} | {word: number for number, word in enumerate(["A", "train", "answer"], start=1)}
    words = Tokenizer(WordLevel(vocabulary, unk_token="?"))
    words.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(source)
    with single_process():
        hf_to_megatron.convert(source, tmp_path / "megatron", tolerance=TOLERANCE)
    assert f"of {len(TEXT.split()) + 64} positions" in capsys.readouterr().err


def test_small_files_come_along_and_other_weights_do_not(tmp_path: Path):
    source = save_model(tmp_path / "hf")
    small = {"chat_template.jinja": "{{ x }}", "LICENSE": "free", "extra/vocab.txt": "a"}
    for name, text in (small | {"pytorch_model.bin": "old", ".cache": "hidden"}).items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text)
    with single_process():
        hf_to_megatron.convert(source, tmp_path / "megatron")
        megatron_to_hf.convert(tmp_path / "megatron", tmp_path / "back")
    there = {str(path.relative_to(tmp_path / "back")) for path in (tmp_path / "back").rglob("*") if path.is_file()}
    assert there == {*small, "config.json", "generation_config.json", "model.safetensors"}
    assert {name: (tmp_path / "back" / name).read_text() for name in small} == small
