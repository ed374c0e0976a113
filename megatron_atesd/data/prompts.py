"""The only place where prompts are made, for both roles.

The teacher's user message is the student's user message with a tail: the revealed reference segments, the boxed answer and the
transition τ. Delete these three and both prompts are equal, thinking switch aside:

    student   problem, instruction
    teacher   problem, instruction, [reference_intro, r_1 … r_k,] answer_intro, \\boxed{…}, transition
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from megatron_atesd.config import PromptConfig
from megatron_atesd.data.reveal import Revealed, Rounding, reference_text, reveal, split_reference
from megatron_atesd.data.tokenizer import id_limit
from megatron_atesd.errors import ConfigError, DataError
from megatron_atesd.records import Problem, TeacherContext

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = "@@response@@"  # only ever rendered, never encoded


class PromptRenderer:
    """Renders both roles' prompts, and references as responses, through the tokenizer's own chat template.

    `id_limit`: ids from here on stand for no text (embedding rows beyond the tokenizer).
    `stop_ids`: the ids that end a response: the template's end-of-turn token first, and the tokenizer's eos if it is another.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", prompt: PromptConfig, reveal: Rounding = "floor") -> None:
        """reveal: rounding of the number of revealed segments (exposure.reveal). Raises ConfigError without a chat template."""
        if not tokenizer.chat_template:
            raise ConfigError("the tokenizer has no chat template: use an instruct model's tokenizer, or set tokenizer.chat_template")
        self._tokenizer: Any = tokenizer
        self.id_limit = id_limit(tokenizer)
        self._prompt = prompt
        self._reveal: Rounding = reveal
        self._end_of_turn = self._find_end_of_turn()
        eos = tokenizer.eos_token_id
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(i for i in (self._end_of_turn, eos) if isinstance(i, int)))

    def student(self, problem: Problem) -> tuple[int, ...]:
        """Ids of the student's prompt: problem and instruction. Raises DataError beyond prompt.max_length tokens."""
        return self._prompt_ids(problem, self._question(problem), self._prompt.student_thinking, "student")

    def teacher(self, problem: Problem, alpha: float) -> TeacherContext:
        """The prompt of exposure alpha in [0, 1] and how much it reveals. Raises DataError beyond prompt.max_length tokens."""
        shown = reveal(problem, alpha, self._reveal)
        message = _paragraphs(self._question(problem), *self._exposure(shown))
        ids = self._prompt_ids(problem, message, self._prompt.teacher_thinking, "teacher")
        return TeacherContext(ids, shown.revealed, shown.segments)

    def reference(self, problem: Problem) -> tuple[int, ...]:
        """Ids of the whole reference solution as the student would write it after its prompt, end-of-turn token included."""
        return self._response_ids(reference_text(problem).strip())

    def answer(self, problem: Problem) -> tuple[int, ...]:
        r"""Ids of the bare `\boxed{…}` as a response, end-of-turn token included."""
        return self._response_ids(split_reference(problem).answer)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of response ids, without special tokens such as the end of turn."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def _question(self, problem: Problem) -> str:
        return _paragraphs(problem.problem, self._prompt.instruction)

    def _exposure(self, shown: Revealed) -> list[str]:
        """The paragraphs that only the teacher sees; without a revealed segment its introduction is left out too."""
        prefix = _lines(self._prompt.reference_intro, shown.text.rstrip()) if shown.revealed else ""
        return [prefix, _lines(self._prompt.answer_intro, shown.answer), self._prompt.transition]

    def _prompt_ids(self, problem: Problem, message: str, thinking: bool, role: str) -> tuple[int, ...]:
        text = self._render([{"role": "user", "content": message}], add_generation_prompt=True, enable_thinking=thinking)
        ids = self._encode(text)
        if len(ids) > self._prompt.max_length:
            raise DataError(
                f"problem {problem.id!r}: its {role} prompt has {len(ids)} tokens, but prompt.max_length is "
                f"{self._prompt.max_length}: raise it, or leave the problem out"
            )
        return ids

    def _response_ids(self, text: str) -> tuple[int, ...]:
        return (*self._encode(text), self._end_of_turn)

    def _find_end_of_turn(self) -> int:
        """The token that the template puts after an assistant's message; else the tokenizer's eos."""
        turns = [{"role": "user", "content": _MARK}, {"role": "assistant", "content": _MARK}]
        closing = self._encode(self._render(turns).rpartition(_MARK)[2].lstrip())
        if closing and closing[0] in self._tokenizer.all_special_ids:
            return closing[0]
        if self._tokenizer.eos_token_id is None:
            raise ConfigError("neither the chat template nor the tokenizer has an end-of-turn token: set tokenizer.eos_token")
        return self._tokenizer.eos_token_id

    def _render(self, turns: list[dict[str, str]], **switches: bool) -> str:
        try:
            return self._tokenizer.apply_chat_template(turns, tokenize=False, **switches)
        except Exception as error:  # a template is a small foreign program (run in a sandbox): it may raise anything
            raise ConfigError(f"the tokenizer's chat template cannot be rendered ({error}): repair chat_template.jinja") from error

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))


def _lines(*parts: str) -> str:
    return "\n".join(part for part in parts if part)


def _paragraphs(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)
