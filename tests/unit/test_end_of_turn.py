"""What ends a response: what the template writes after an assistant's message, the tokenizer's eos, the model's own list."""

import json
from pathlib import Path

import pytest

from megatron_atesd.config import PromptConfig
from megatron_atesd.data.prompts import PromptRenderer
from megatron_atesd.data.tokenizer import model_stop_ids
from megatron_atesd.errors import ConfigError
from megatron_atesd.records import Problem
from tests.support.small_tokenizers import CHATML, tokenizer

PROBLEM = Problem("one", "3 plus 4", "3 plus 4 makes 7.\n\\boxed{7}", "7", {})
LLAMA_3 = """\
{{- '<|begin|>' -}}{%- for m in messages -%}{{ '<|header|>' + m.role + '<|/header|>\n\n' + m.content | trim + '<|eot|>' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|header|>assistant<|/header|>\n\n' }}{%- endif -%}"""
DEFAULT_SYSTEM = "{%- if messages[0].role != 'system' -%}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{%- endif -%}" + CHATML
ONLY_BETWEEN = """\
{{- '<s>' -}}{%- for m in messages -%}
{%- if m.role == 'user' -%}{{ '[INST] ' + m.content + '[/INST]' }}
{%- else -%}{{ ' ' + m.content }}{%- if not loop.last -%}{{ '<|stop|>' }}{%- endif -%}{%- endif -%}{%- endfor -%}"""
NO_END = "{{- '[gMASK]' -}}{%- for m in messages -%}{{ '<|' + m.role + '|>\n' + m.content }}{%- endfor -%}"
PLAIN = "{%- for m in messages -%}{{ m.role | upper + ': ' + m.content | upper + '\n' }}{%- endfor -%}"
SPACED = "{%- for m in messages -%}{{ m.content + ' \n <|eot|> \n\n' }}{%- endfor -%}"
ANSWER_TAG = "{%- for m in messages -%}{{ m.content + '</answer><|eot|>' }}{%- endfor -%}"
PROMPTS_ONLY = """\
{%- for m in messages -%}{%- if m.role != 'user' -%}{{ raise_exception('prompts only') }}{%- endif -%}
{{ '<|im_start|>' + m.content + '<|im_end|>' }}{%- endfor -%}"""
DROPS_ANSWERS = "{%- for m in messages if m.role == 'user' -%}{{ '<|im_start|>' + m.content + '<|im_end|>' }}{%- endfor -%}"
CLOSES_BY_ITSELF = CHATML.replace("{%- if add_generation_prompt -%}", "{%- if true -%}")
SAME_ENDS = "{{- '<|eot|>' -}}{%- for m in messages -%}{{ m.content + '<|eot|>' }}{%- endfor -%}"


@pytest.mark.parametrize(
    ("template", "special", "eos", "ordinary", "stops"),
    [
        (CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_end|>", [], ["<|im_end|>"]),
        (CHATML, ["</s>", "<|im_start|>", "<|im_end|>"], "</s>", [], ["<|im_end|>", "</s>"]),
        (CHATML, ["</s>"], "</s>", ["<|im_start|>", "<|im_end|>"], ["<|im_end|>", "</s>"]),
        (CHATML, ["<|im_start|>", "<|im_end|>"], None, [], ["<|im_end|>"]),
        (CHATML, ["</s>"], "</s>", [], ["</s>"]),
        (DEFAULT_SYSTEM, ["</s>", "<|im_start|>", "<|im_end|>"], "</s>", [], ["<|im_end|>", "</s>"]),
        (CLOSES_BY_ITSELF, ["</s>", "<|im_start|>", "<|im_end|>"], "</s>", [], ["<|im_end|>", "</s>"]),
        (LLAMA_3, ["<|begin|>", "<|text|>", "<|header|>", "<|/header|>", "<|eot|>"], "<|text|>", [], ["<|eot|>", "<|text|>"]),
        (ONLY_BETWEEN, ["<s>", "</s>", "[INST]", "[/INST]", "<|stop|>"], "</s>", [], ["<|stop|>", "</s>"]),
        (NO_END, ["[gMASK]", "</s>", "<|user|>", "<|assistant|>"], "</s>", [], ["</s>"]),
        (PLAIN, ["</s>"], "</s>", [], ["</s>"]),
        (SPACED, ["</s>", "<|eot|>"], "</s>", [], ["<|eot|>", "</s>"]),
        (ANSWER_TAG, ["</s>", "<|eot|>"], "</s>", ["</answer>"], ["<|eot|>", "</s>"]),
        (PROMPTS_ONLY, ["</s>", "<|im_start|>", "<|im_end|>"], "</s>", [], ["</s>"]),
        (DROPS_ANSWERS, ["</s>", "<|im_start|>", "<|im_end|>"], "</s>", [], ["</s>"]),
        (SAME_ENDS, ["<|eot|>"], "<|eot|>", [], ["<|eot|>"]),
    ],
)
def test_responses_end_as_the_template_says_and_as_eos_says(
    template: str, special: list[str], eos: str | None, ordinary: list[str], stops: list[str]
) -> None:
    made = tokenizer(template, special, eos, ordinary)
    renderer = PromptRenderer(made, PromptConfig())
    assert made.convert_ids_to_tokens(list(renderer.stop_ids)) == stops
    for response, text in ((renderer.reference(PROBLEM), PROBLEM.solution), (renderer.answer(PROBLEM), "\\boxed{7}")):
        assert response[-1] == renderer.stop_ids[0]
        assert made.decode(list(response[:-1])) == text
        assert renderer.decode(response) == text


@pytest.mark.parametrize(
    ("named", "more"),
    [
        (None, []),
        ([], []),
        ("<|x|>", ["<|x|>"]),
        (["<|x|>"], ["<|x|>"]),
        (["<|y|>", "<|x|>", "<|im_end|>"], ["<|y|>", "<|x|>"]),
        (["<|im_end|>"], []),
    ],
)
def test_the_models_own_list_counts_too(named: str | list[str] | None, more: list[str], tmp_path: Path) -> None:
    made = tokenizer(CHATML, ["<|im_end|>", "<|x|>", "<|y|>"], "<|im_end|>")
    ids = None if named is None else made.convert_tokens_to_ids(named)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    renderer = PromptRenderer(made, PromptConfig(), "floor", model_stop_ids(tmp_path))
    assert made.convert_ids_to_tokens(list(renderer.stop_ids)) == ["<|im_end|>", *more]
    assert renderer.decode([*renderer.answer(PROBLEM)[:-1], renderer.stop_ids[-1]]) == "\\boxed{7}"


def test_without_generation_config_there_is_no_list(tmp_path: Path) -> None:
    assert model_stop_ids(tmp_path) == []


def test_the_models_list_alone_will_do() -> None:
    made = tokenizer(PLAIN, ["<|x|>"], None)
    end = made.vocab["<|x|>"]
    assert PromptRenderer(made, PromptConfig(), "floor", [end]).reference(PROBLEM)[-1] == end


def test_nothing_that_ends_a_turn_is_refused() -> None:
    with pytest.raises(ConfigError, match="neither the chat template nor the tokenizer has an end-of-turn token"):
        PromptRenderer(tokenizer(PLAIN, [], None), PromptConfig())


def test_a_stop_id_that_is_ordinary_text_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """As in a generation_config.json with the ids of another tokenizer."""
    made = tokenizer(CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_end|>")
    seven = made.vocab["7"]
    assert PromptRenderer(made, PromptConfig(), "floor", [seven]).stop_ids[1:] == (seven,)
    assert f"warning: generation_config.json ends responses at '7' (eos_token_id {seven})" in capsys.readouterr().err
