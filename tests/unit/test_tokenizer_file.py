"""A tokenizer that does something else than its tokenizer.json says is refused, whatever made it so; others are not."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import decoders, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from megatron_atesd.data import tokenizer as loading
from megatron_atesd.data.tokenizer import load_tokenizer
from megatron_atesd.errors import DataError
from tests.support.small_tokenizers import KINDS, byte_level

ROWS = 1000


def save(folder: Path, core: Any, **config: Any) -> Path:
    core.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"unk_token": "<unk>"} | config))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": ROWS}))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_file_says_is_accepted(kind: str, tmp_path: Path) -> None:
    save(tmp_path, KINDS[kind](), tokenizer_class="PreTrainedTokenizerFast")
    assert load_tokenizer(tmp_path, ROWS).encode("plus") == KINDS[kind]().encode("plus").ids


def with_padding(core: Any) -> None:
    core.enable_padding(length=64, pad_id=0)
    core.enable_truncation(5)


def with_start(core: Any) -> None:
    core.post_processor = processors.TemplateProcessing(single="! $A", special_tokens=[("!", core.token_to_id("!"))])


@pytest.mark.parametrize("change", [with_padding, with_start])
@pytest.mark.parametrize("config", [{}, {"clean_up_tokenization_spaces": True}, {"add_bos_token": True, "bos_token": "!"}], ids=str)
def test_what_only_adds_to_a_text_is_accepted(change: Any, config: dict[str, Any], tmp_path: Path) -> None:
    core = byte_level()
    change(core)
    load_tokenizer(save(tmp_path, core, tokenizer_class="PreTrainedTokenizerFast", **config), ROWS)


def loses_the_decoder(core: Any) -> None:
    core.decoder = decoders.Fuse()


def loses_spaces(core: Any) -> None:
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)])


def joins_spaces(core: Any) -> None:
    core.normalizer = normalizers.Replace("  ", " ")


def adds_a_space(core: Any) -> None:
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def drops_accents(core: Any) -> None:
    core.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])


def loses_newlines(core: Any) -> None:
    core.normalizer = normalizers.Replace("\n", " ")


@pytest.mark.parametrize("fault", [loses_the_decoder, loses_spaces, joins_spaces, adds_a_space, drops_accents, loses_newlines])
def test_another_tokenizer_than_the_file_is_refused(fault: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(folder: Path) -> PreTrainedTokenizerFast:
        core = byte_level()
        fault(core)
        return PreTrainedTokenizerFast(tokenizer_object=core)

    save(tmp_path, byte_level())
    monkeypatch.setattr(loading, "_load", faulty)
    with pytest.raises(
        DataError, match=r"tokenizer\.json: transformers \S+ makes another tokenizer of it: .*; install transformers>=5\.22"
    ):
        load_tokenizer(tmp_path, ROWS)


def test_the_remedy_in_the_message_helps(tmp_path: Path) -> None:
    """transformers' LlamaTokenizer puts a space before every text, whatever the file says (as with Yi's)."""
    core = KINDS["metaspace"]()
    core.normalizer = normalizers.Replace(" ", "▁")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    save(tmp_path, core, tokenizer_class="LlamaTokenizer")
    with pytest.raises(DataError, match=r"or set tokenizer_class in tokenizer_config\.json to PreTrainedTokenizerFast"):
        load_tokenizer(tmp_path, ROWS)
    save(tmp_path, core, tokenizer_class="PreTrainedTokenizerFast")
    assert load_tokenizer(tmp_path, ROWS).encode("user") == core.encode("user").ids
