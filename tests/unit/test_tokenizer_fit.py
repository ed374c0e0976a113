"""Tokenizer and model belong together: BPE and sentencepiece, spare embedding rows, added tokens, and what is refused."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from checkpoints_convert import hf_to_megatron, megatron_to_hf
from checkpoints_convert.command import TOLERANCE, single_process, whole_model
from checkpoints_convert.verify import TEXT
from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.config import PromptConfig, RolloutConfig
from megatron_atesd.data.prompts import PromptRenderer
from megatron_atesd.data.tokenizer import check_tokenizer, id_limit, load_tokenizer
from megatron_atesd.errors import ConfigError, DataError
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.records import Problem
from megatron_atesd.rollout.training_engine import TrainingEngine
from tests.support.convert_models import save_model

WORDS, ROWS = 300, 320
TEXTS = [f"user {a} plus {b} makes {a + b}. The answer is \\boxed{{{a + b}}} reference assistant" for a in range(30) for b in range(30)]
# As Llama writes turns: the end-of-turn token is the tokenizer's eos.
TEMPLATE = """\
{%- for m in messages -%}
{%- if m.role == 'user' -%}[INST] {{ m.content }} [/INST]{%- else -%}{{ m.content }}</s>{%- endif -%}
{%- endfor -%}"""
PROBLEM = Problem("one", "3 plus 4", "3 plus 4 makes 7.\n\\boxed{7}", "7", {})


def save_sentencepiece(folder: Path) -> None:
    """tokenizer.model as Llama 2 has it, and nothing of the tokenizers library."""
    model = io.BytesIO()
    sizes: dict[str, Any] = {"vocab_size": WORDS, "model_type": "bpe", "byte_fallback": True, "num_threads": 1, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXTS), model_writer=model, unk_id=0, bos_id=1, eos_id=2, **sizes)  # pyright: ignore[reportAttributeAccessIssue]
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def save_bpe(folder: Path) -> None:
    """tokenizer.json of a byte-level BPE as Qwen's, with an end-of-turn token added to it."""
    bpe: Any = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=WORDS - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)  # pyright: ignore[reportCallIssue]
    bpe.train_from_iterator(TEXTS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


@pytest.fixture(scope="module", params=["sentencepiece", "bpe"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama with 20 embedding rows more than its tokenizer has ids."""
    folder = save_model(tmp_path_factory.mktemp(request.param) / "hf", family="llama", vocab_size=ROWS, max_position_embeddings=256)
    {"sentencepiece": save_sentencepiece, "bpe": save_bpe}[request.param](folder)
    return folder


def renderer(folder: Path, rows: int = ROWS) -> PromptRenderer:
    return PromptRenderer(load_tokenizer(folder, rows), PromptConfig())


def test_prompts_render_decode_and_stop(folder: Path) -> None:
    prompts = renderer(folder)
    assert prompts.decode(prompts.student(PROBLEM)).startswith("[INST] 3 plus 4\n\n")
    assert prompts.decode(prompts.reference(PROBLEM)) == PROBLEM.solution
    assert prompts.reference(PROBLEM)[-1:] == prompts.stop_ids
    assert prompts.stop_ids == (load_tokenizer(folder, ROWS).eos_token_id,)


def test_the_tokenizer_travels_both_ways(folder: Path, tmp_path: Path) -> None:
    with single_process():
        hf_to_megatron.convert(folder, tmp_path / "megatron", tolerance=TOLERANCE)
        megatron_to_hf.convert(tmp_path / "megatron", tmp_path / "back")
    for there in (tmp_path / "megatron" / "hf", tmp_path / "back"):
        assert renderer(there).teacher(PROBLEM, 1.0) == renderer(folder).teacher(PROBLEM, 1.0)
        assert load_tokenizer(there, ROWS).encode(TEXT) == load_tokenizer(folder, ROWS).encode(TEXT)


def test_spare_embedding_rows_are_never_sampled(folder: Path) -> None:
    with single_process():
        model = whole_model(read_architecture(folder), "fp32")
        load_hf_weights(model, folder)
        with torch.no_grad():
            model.head_weight()[WORDS:] *= 50  # without the limit, spare rows win nearly every draw
        prompts = renderer(folder)
        largest = []
        for limit in (prompts.id_limit, None):
            config = RolloutConfig(max_new_tokens=24)
            responses = TrainingEngine(model, prompts.stop_ids, limit).generate([prompts.student(PROBLEM)] * 4, range(4), config)
            largest.append(max(id for response in responses for id in response.ids))
        assert largest[0] < WORDS <= largest[1]


def test_an_id_without_text_decodes_to_nothing(folder: Path) -> None:
    prompts = renderer(folder)
    ids = prompts.reference(PROBLEM)
    assert prompts.decode([*ids, ROWS - 1, ROWS + 1000]) == PROBLEM.solution


def test_as_many_rows_as_ids_fit_and_one_less_does_not(folder: Path) -> None:
    assert id_limit(load_tokenizer(folder, WORDS)) == WORDS
    with pytest.raises(DataError, match=rf"token .* has id {WORDS - 1}, but config.json gives vocab_size {WORDS - 1};"):
        load_tokenizer(folder, WORDS - 1)


def test_added_tokens_count(folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder, ROWS)
    tokenizer.add_tokens([f"<new{n}>" for n in range(ROWS - WORDS + 1)])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=rf"token '<new20>' has id {ROWS}, but config.json gives vocab_size {ROWS}"):
        load_tokenizer(tmp_path, ROWS)
    assert id_limit(load_tokenizer(tmp_path, ROWS + 1)) == ROWS + 1


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("change", [{"eos_token_id": 61}, {"eos_token_id": [2, 61]}, {"pad_token_id": -2}, {"bos_token_id": "1"}], ids=str)
def test_a_token_id_that_is_no_row(tmp_path: Path, file: str, change: dict[str, Any]) -> None:
    (tmp_path / file).write_text(json.dumps({"vocab_size": 61} | change))
    ((key, value),) = change.items()
    with pytest.raises(DataError) as refusal:
        check_tokenizer(tmp_path, 61)
    assert str(refusal.value) == f"{tmp_path / file}: {key} is {value}, must be a token id from 0 to 60 (vocab_size); correct it"


def test_minus_one_means_no_padding_token(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"pad_token_id": -1, "eos_token_id": null}')
    check_tokenizer(tmp_path, 61)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"tokenizer.json": "{"}, r"the tokenizer \(tokenizer.json\) cannot be loaded without trust_remote_code: Expecting property name"),
        ({"tokenizer.json": "[]"}, "cannot be loaded"),
        ({"tokenizer.json": '{"version": "1.0", "model": {"type": "Nope"}}'}, "cannot be loaded"),
        ({"tokenizer.model": "garbage", "tokenizer_config.json": '{"tokenizer_class": "LlamaTokenizer"}'}, "cannot be loaded"),
        ({"tokenizer.model": "", "tokenizer_config.json": '{"tokenizer_class": "LlamaTokenizer"}'}, "has special tokens only"),
        ({"tokenizer_config.json": "{}"}, "no tokenizer here"),
    ],
)
def test_a_damaged_tokenizer(tmp_path: Path, files: dict[str, str], reason: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=reason):
        check_tokenizer(tmp_path, 61)


def test_a_tokenizer_never_runs_code_of_its_folder(folder: Path, tmp_path: Path) -> None:
    load_tokenizer(folder, ROWS).save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'touched')!r}, 'w')")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="without trust_remote_code"):
        load_tokenizer(tmp_path, ROWS)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("template", ["{% if %}", "{{ raise_exception('no system message') }}", "{{ messages + 1 }}"])
def test_a_chat_template_that_cannot_be_rendered(folder: Path, template: str) -> None:
    tokenizer = load_tokenizer(folder, ROWS)
    tokenizer.chat_template = template
    with pytest.raises(ConfigError, match="chat template cannot be rendered"):
        PromptRenderer(tokenizer, PromptConfig())
