"""Prompts of both roles, with the quickstart's tokenizer (tests/unit/test_data_prompts_qwen3.py: with Qwen3's)."""

from dataclasses import replace

import pytest

from examples.quickstart.tokenizer import PROMPT, build_tokenizer
from megatron_atesd.data.notice import warn_once
from megatron_atesd.data.prompts import PromptRenderer
from megatron_atesd.errors import ConfigError, DataError
from megatron_atesd.records import Problem

TOKENIZER = build_tokenizer()
PROBLEM = Problem("sum-1", "15+3-3", "15+3=18\n18-3=15\n\\boxed{15}", "15")


def renderer(**changes: object) -> PromptRenderer:
    return PromptRenderer(TOKENIZER, replace(PROMPT, **changes), "nearest")  # type: ignore[arg-type]


def text(ids: tuple[int, ...]) -> str:
    return TOKENIZER.decode(list(ids))  # type: ignore[return-value]


def test_the_student_sees_the_problem_only() -> None:
    assert text(renderer().student(PROBLEM)) == "<|im_start|>user15+3-3<|im_end|><|im_start|>assistant<think></think>"


def test_the_teacher_sees_the_revealed_steps_the_answer_and_the_transition() -> None:
    context = renderer().teacher(PROBLEM, 0.5)
    assert text(context.prompt_ids) == (
        "<|im_start|>user15+3-3\n\nreference\n15+3=18\n\nanswer\n\\boxed{15}\n\nsolve<|im_end|><|im_start|>assistant<think></think>"
    )
    assert (context.revealed, context.segments) == (1, 2)


def test_without_a_revealed_step_its_introduction_is_gone_too() -> None:
    assert "reference" not in text(renderer().teacher(PROBLEM, 0.0).prompt_ids)


def test_of_a_lenders_reference_the_teacher_sees_the_answer_too_and_nothing_of_the_problems_own() -> None:
    context = renderer().teacher(PROBLEM, 0.5, Problem("sum-2", "2+2+2+2", "2+2=4\n4+2=6\n6+2=8\n\\boxed{8}", "8"))
    assert text(context.prompt_ids) == (
        "<|im_start|>user15+3-3\n\nreference\n2+2=4\n4+2=6\n\nanswer\n\\boxed{8}\n\nsolve<|im_end|><|im_start|>assistant<think></think>"
    )
    assert (context.revealed, context.segments) == (2, 3)


def test_the_bare_teachers_prompt_is_the_students_but_for_the_thinking_switch() -> None:
    told = renderer(instruction="solve", student_thinking=True, teacher_thinking=False)
    context = told.bare_teacher(PROBLEM)
    assert text(context.prompt_ids) == text(told.student(PROBLEM)) + "<think></think>"
    assert (context.revealed, context.segments) == (0, 2)


def test_each_role_has_its_own_thinking_switch() -> None:
    mixed = renderer(student_thinking=True, teacher_thinking=False)
    assert text(mixed.student(PROBLEM)).endswith("assistant")
    assert text(mixed.teacher(PROBLEM, 0.0).prompt_ids).endswith("assistant<think></think>")


def test_the_instruction_follows_the_problem_in_both_roles() -> None:
    told = renderer(instruction="solve")
    assert "15+3-3\n\nsolve<|im_end|>" in text(told.student(PROBLEM))
    assert "15+3-3\n\nsolve\n\nanswer" in text(told.teacher(PROBLEM, 0.0).prompt_ids)


def test_the_reference_is_what_a_student_would_write() -> None:
    assert text(renderer().reference(PROBLEM)) == PROBLEM.solution + "<|im_end|>"


def test_the_answer_is_the_box_alone() -> None:
    assert text(renderer().answer(PROBLEM)) == "\\boxed{15}<|im_end|>"


def test_a_reference_without_a_box_gets_one() -> None:
    assert text(renderer().reference(Problem("a", "15+3", "15+3=18\n", "18"))) == "15+3=18\n\\boxed{18}<|im_end|>"


@pytest.mark.parametrize(("role", "tokens"), [("student", 10), ("teacher", 30)])
def test_a_prompt_beyond_the_limit_is_refused_by_problem_and_length(role: str, tokens: int) -> None:
    fits = renderer(max_length=tokens)
    tight = renderer(max_length=tokens - 1)
    prompt = {"student": lambda r: r.student(PROBLEM), "teacher": lambda r: r.teacher(PROBLEM, 1.0).prompt_ids}[role]
    assert len(prompt(fits)) == tokens
    with pytest.raises(DataError, match=rf"problem 'sum-1': its {role} prompt has {tokens} tokens, but prompt\.max_length is {tokens - 1}"):
        prompt(tight)


def test_a_template_without_a_thinking_switch_works() -> None:
    plain = build_tokenizer()
    plain.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant"
    ids = PromptRenderer(plain, PROMPT).student(PROBLEM)
    assert plain.decode(list(ids)) == "<|im_start|>user\n15+3-3<|im_end|>\n<|im_start|>assistant"


def test_the_end_of_turn_is_the_templates_and_eos_stops_too() -> None:
    other = build_tokenizer()
    other.eos_token = "<|pad|>"
    end, pad = (other.vocab[token] for token in ("<|im_end|>", "<|pad|>"))
    # <|im_end|> has no name any more here, but is a special token still.
    assert PromptRenderer(other, PROMPT).stop_ids == (end, pad)


@pytest.mark.parametrize("ending", ["<|im_start|>assistant", "<|im_start|>assistant<think>", ""])
def test_a_template_without_a_thinking_switch_is_said_once(ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    warn_once.cache_clear()
    plain = build_tokenizer()
    plain.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}{{ m.content }}<|im_end|>{% endfor %}" + ending
    for _ in range(3):
        PromptRenderer(plain, PROMPT).student(PROBLEM)
    said = capsys.readouterr().err
    assert said.count("the chat template has no thinking switch") == 1
    assert f"every prompt ends with '<|im_end|>{ending}'" in said


@pytest.mark.parametrize(
    ("ending", "special", "opening"),
    [("<think>\n", [], "<think>"), ("<think></think>", [], ""), ("", [], ""), ("<think>\n", ["</think>"], "")],
)
def test_a_template_that_opens_the_thinking_says_so(ending: str, special: list[str], opening: str) -> None:
    """Not where decoding leaves `</think>` out, for then nothing would ever stand behind it."""
    plain = build_tokenizer()
    plain.add_special_tokens({"additional_special_tokens": special})
    plain.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}{{ m.content }}<|im_end|>{% endfor %}" + ending
    assert PromptRenderer(plain, PROMPT).opening == opening


def test_a_thinking_switch_that_works_needs_no_word(capsys: pytest.CaptureFixture[str]) -> None:
    warn_once.cache_clear()
    renderer()
    assert capsys.readouterr().err == ""


def test_other_ranks_say_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    warn_once.cache_clear()
    monkeypatch.setenv("RANK", "1")
    warn_once("a word")
    assert capsys.readouterr().err == ""


def test_a_tokenizer_without_a_chat_template_is_refused() -> None:
    bare = build_tokenizer()
    bare.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        PromptRenderer(bare, PROMPT)
