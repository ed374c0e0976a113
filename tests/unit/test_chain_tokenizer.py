"""The quickstart's tokenizer: exact, small, and the same after a round trip through a model folder."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from examples.quickstart.tokenizer import PROMPT, build_tokenizer
from megatron_atesd.data.prompts import PromptRenderer
from megatron_atesd.data.sources.chain import MODULUS, OPERATIONS, chain_splits

TOKENIZER = build_tokenizer()
PROBLEMS = [p for style in ("det", "rand") for p in chain_splits({"all": 500}, seed=5, references=style)["all"]]


def test_text_comes_back_exactly() -> None:
    for problem in PROBLEMS:
        for text in (problem.problem, problem.solution):
            assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@pytest.mark.parametrize("piece", [*map(str, range(MODULUS)), *OPERATIONS, "\n", "\n\n", "=", "\\boxed{", "}", "<think>", "</think>"])
def test_every_piece_is_one_known_token(piece: str) -> None:
    assert len(TOKENIZER.encode(piece)) == 1
    assert TOKENIZER.encode(piece) != [TOKENIZER.unk_token_id]


def test_no_prompt_or_reference_holds_an_unknown_token() -> None:
    renderer = PromptRenderer(TOKENIZER, PROMPT, "nearest")
    for problem in PROBLEMS:
        ids = renderer.student(problem) + renderer.teacher(problem, 1.0).prompt_ids + renderer.reference(problem)
        assert TOKENIZER.unk_token_id not in ids


def test_the_longest_prompt_fits_the_toys_limit() -> None:
    renderer = PromptRenderer(TOKENIZER, PROMPT, "nearest")
    assert max(len(renderer.teacher(p, 1.0).prompt_ids) for p in PROBLEMS) == 54 < PROMPT.max_length


def test_a_line_of_a_reference_takes_four_tokens_and_one_for_each_operation() -> None:
    renderer = PromptRenderer(TOKENIZER, PROMPT)
    assert all(len(renderer.reference(p)) == 4 * p.solution.count("=") + p.metadata["difficulty"] + 4 for p in PROBLEMS)


def test_eos_is_the_end_of_turn_and_padding_is_another_token() -> None:
    assert (TOKENIZER.eos_token, TOKENIZER.pad_token) == ("<|im_end|>", "<|pad|>")
    assert PromptRenderer(TOKENIZER, PROMPT).stop_ids == (TOKENIZER.eos_token_id,)


def test_a_qwen3_model_folder_gives_the_same_ids(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}))
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    here, there = (PromptRenderer(tokenizer, PROMPT, "nearest") for tokenizer in (TOKENIZER, loaded))
    for problem in PROBLEMS[:50]:
        assert there.teacher(problem, 0.5) == here.teacher(problem, 0.5)
        assert there.reference(problem) == here.reference(problem)
    assert loaded.decode(loaded.encode(PROBLEMS[0].solution)) == PROBLEMS[0].solution
    assert (loaded.eos_token_id, loaded.pad_token_id) == (TOKENIZER.eos_token_id, TOKENIZER.pad_token_id)
