"""Small tokenizers of each kind, for the tests of prompts."""

from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [f"user {a} plus {b} makes {a + b}. <|end|> </s> assistant |im_start|> system" for a in range(20) for b in range(20)]
CHATML = """\
{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"""


def byte_level() -> Any:
    """As Qwen's and Llama 3's: every text has ids."""
    core: Any = Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)  # pyright: ignore[reportCallIssue]
    core.train_from_iterator(TEXTS, trainer)
    return core


def metaspace() -> Any:
    """As Llama 2's: pieces of characters with a sign for the space, whose merges reach `</s>`."""
    characters = sorted({character for text in TEXTS for character in text.replace(" ", "▁")})
    pieces = ["<unk>", "</s>", *characters, "</", "s>", "▁a", "se"]
    merges = [("<", "/"), ("s", ">"), ("</", "s>"), ("▁", "a"), ("s", "e")]
    core: Any = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, unk_token="<unk>", fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return core


def unigram() -> Any:
    """As sentencepiece's other kind; `</s>` is a piece like others."""
    characters = sorted({character for text in TEXTS for character in text.replace(" ", "▁")})
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((character, -5.0) for character in characters), ("▁plus", -3.0)]
    core: Any = Tokenizer(models.Unigram(pieces, unk_id=0))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return core


def words() -> Any:
    """Whole words; what is none of them is unknown."""
    entries = ["<unk>", "</s>", "user", "assistant", "plus", "makes", "<|im_start|>", "<|im_end|>"]
    core: Any = Tokenizer(models.WordLevel({entry: i for i, entry in enumerate(entries)}, unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.WhitespaceSplit(), decoders.Fuse()
    return core


def word_pieces() -> Any:
    """As BERT's."""
    characters = sorted({character for text in TEXTS for character in text if character != " "})
    entries = ["<unk>", "</s>", *characters, *(f"##{character}" for character in characters)]
    core: Any = Tokenizer(models.WordPiece({entry: i for i, entry in enumerate(entries)}, unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece()
    return core


KINDS: dict[str, Callable[[], Any]] = {
    "byte-level": byte_level,
    "metaspace": metaspace,
    "unigram": unigram,
    "words": words,
    "word pieces": word_pieces,
}


def tokenizer(
    template: str, special: Sequence[str], eos: str | None, ordinary: Sequence[str] = (), core: Any = None, **names: str
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer, or `core`, with added tokens: `special` ones, of which only eos has a name, and `ordinary` ones."""
    core = core or byte_level()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in ordinary])
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, **names)
    fast.chat_template = template
    return fast
