"""The tokenizer that travels with a model folder: loading it, and whether its ids and the model's embedding rows fit each other."""

import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from megatron_atesd.data.hf_json import read_json_object
from megatron_atesd.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
TOKENIZER_FILES = (*VOCABULARY_FILES, "tokenizer_config.json")
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SENTENCES = (
    "So 12 + 30 = 42, and it doesn't matter; the answer is \\boxed{42}.",
    "Two  spaces, a tab\tand\n\n    an indented line: für alle x_1 ∈ ℝ 数学题 😀",
)
_NO_PADDING = ("pad_token_id", -1)  # how older Llama configs say that there is no padding token


def load_tokenizer(folder: Path, vocabulary: int) -> "PreTrainedTokenizerBase":
    """The tokenizer saved in a Hugging Face folder (BPE or sentencepiece), without running code from it.

    vocabulary: embedding rows of the model (vocab_size). More rows than ids are fine, Qwen3 has 267 to spare; ids without a row are not.
    Raises DataError when there is no usable tokenizer, when the installed transformers makes another one than tokenizer.json says, or when
    an id of it, of config.json or of generation_config.json has no row.
    """
    tokenizer = _load(folder)
    _check_against_file(folder / "tokenizer.json", tokenizer)
    entries = tokenizer.get_vocab()
    if len(entries) <= len(tokenizer.added_tokens_decoder):  # transformers makes a tokenizer of nothing from an empty file
        raise DataError(f"{folder}: its tokenizer has special tokens only, no words; download {' or '.join(VOCABULARY_FILES[:2])} again")
    token, last = max(entries.items(), key=lambda entry: entry[1])
    if last >= vocabulary:
        raise DataError(
            f"{folder}: the tokenizer does not fit the model: token {token!r} has id {last}, but config.json gives vocab_size {vocabulary};"
            " use the model's own tokenizer, or give added tokens rows first (resize_token_embeddings of transformers)"
        )
    check_token_ids(folder, vocabulary)
    return tokenizer


def check_tokenizer(folder: Path, vocabulary: int) -> None:
    """As `load_tokenizer`, for a folder that may come without a tokenizer: then only the ids that its configs name are checked."""
    if any(os.path.lexists(folder / name) for name in TOKENIZER_FILES):  # a link that leads nowhere is a tokenizer that was lost
        load_tokenizer(folder, vocabulary)
    else:
        check_token_ids(folder, vocabulary)


def model_stop_ids(folder: Path) -> list[int]:
    """The ids that end a response according to generation_config.json (eos_token_id, one or several), if the folder has one."""
    path = folder / "generation_config.json"
    given = read_json_object(path).get("eos_token_id") if os.path.lexists(path) else None
    return given if isinstance(given, list) else [] if given is None else [given]


def check_token_ids(folder: Path, vocabulary: int) -> None:
    """Raise DataError for a start, end or padding id in config.json or generation_config.json that is no row of the vocabulary."""
    for path in (folder / "config.json", folder / "generation_config.json"):
        values = read_json_object(path) if os.path.lexists(path) else {}
        for key in _TOKEN_IDS:
            given = values.get(key)
            if (key, given) != _NO_PADDING and not _are_rows(given, vocabulary):
                raise DataError(f"{path}: {key} is {given}, must be a token id from 0 to {vocabulary - 1} (vocab_size); correct it")


def _are_rows(given: object, vocabulary: int) -> bool:
    tokens = given if isinstance(given, list) else [] if given is None else [given]
    return all(type(token) is int and 0 <= token < vocabulary for token in tokens)


def _check_against_file(path: Path, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise DataError when `tokenizer` encodes or decodes text in another way than the tokenizer.json that it was made from."""
    if not path.is_file():
        return
    file = Tokenizer.from_file(str(path))
    file.no_truncation()
    file.no_padding()
    for sentence in _SENTENCES:
        try:
            expected = file.encode(sentence, add_special_tokens=False).ids
        except Exception:  # a vocabulary of words may have no id for others
            continue
        text = file.decode(expected, skip_special_tokens=False)
        ids = tokenizer.encode(sentence, add_special_tokens=False)
        back = tokenizer.decode(expected, clean_up_tokenization_spaces=False)
        if ids != expected or back != text:
            shown = f"decodes to {back!r} instead of {text!r}" if back != text else f"has ids {ids[:8]}… instead of {expected[:8]}…"
            raise DataError(
                f"{path}: transformers {version('transformers')} makes another tokenizer of it: {sentence!r} {shown}; "
                "install transformers>=5.22 (older ones lose the spaces of byte-level Llama tokenizers), or set tokenizer_class in "
                "tokenizer_config.json to PreTrainedTokenizerFast, which takes tokenizer.json as it is"
            )


def id_limit(tokenizer: "PreTrainedTokenizerBase") -> int:
    """One more than the largest id that the tokenizer knows: embedding rows from there on stand for no text."""
    return max(tokenizer.get_vocab().values()) + 1


def _load(folder: Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        raise DataError(f"{folder}: no tokenizer here; copy {' or '.join(VOCABULARY_FILES[:2])} and tokenizer_config.json into it")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # a damaged file shows as whatever the parsers of four formats happen to raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        files = ", ".join(name for name in TOKENIZER_FILES if (folder / name).is_file())
        raise DataError(
            f"{folder}: the tokenizer ({files}) cannot be loaded without trust_remote_code: {reason}; download it again"
        ) from error
