"""The only place where prompts are made, for both roles.

The teacher's user message is the student's user message with a tail: the revealed reference segments, the boxed answer and the
transition τ. Delete these three and both prompts are equal, thinking switch aside:

    student   problem, instruction
    teacher   problem, instruction, [reference_intro, r_1 … r_k,] answer_intro, \\boxed{…}, transition

The reference may be another problem's, or nobody's: then the teacher's message is the student's.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from megatron_atesd.config import PromptConfig
from megatron_atesd.data.boxes import THINKING_BEGINS, THINKING_ENDS
from megatron_atesd.data.chat_encoder import ChatEncoder
from megatron_atesd.data.chat_template import ChatTemplate, added_tokens, special_tokens
from megatron_atesd.data.notice import warn_once
from megatron_atesd.data.reveal import Revealed, Rounding, reference_text, reveal, split_reference
from megatron_atesd.data.tokenizer import id_limit
from megatron_atesd.errors import ConfigError, DataError
from megatron_atesd.records import Problem, TeacherContext

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LONGEST_CHARACTER = 4  # bytes of UTF-8, so at most as many tokens


class PromptRenderer:
    """Renders both roles' prompts, and references as responses, through the tokenizer's own chat template.

    Control tokens are the template's alone: in a problem, a solution or an instruction their text is plain characters.
    `id_limit`: ids from here on stand for no text (embedding rows beyond the tokenizer).
    `stop_ids`: the ids that end a response: first the one that ends references, then the tokenizer's eos and the model's own.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", prompt: PromptConfig, reveal: Rounding = "floor", model_stops: Sequence[int] = ()
    ) -> None:
        """reveal: rounding of the number of revealed segments (exposure.reveal). model_stops: see `model_stop_ids`.

        Raises ConfigError without a chat template, for one that cannot be rendered, and when nothing says how a turn ends. Warns, once a
        job, when the template has no thinking switch, and of a stop id that is a piece of text.
        """
        self._tokenizer: Any = tokenizer
        self._template = ChatTemplate(tokenizer)
        self._prompt = prompt
        self._reveal: Rounding = reveal
        self.id_limit = id_limit(tokenizer)
        self.stop_ids = self._stop_ids(self._tokenizer.eos_token_id, model_stops)
        added = added_tokens(tokenizer)
        self._control = special_tokens(tokenizer) | {token: number for token, number in added.items() if number in self.stop_ids}
        self._encoder = ChatEncoder(tokenizer, self._control)
        self._warn([stop for stop in model_stops if stop < self.id_limit and stop not in added.values()])

    def _stop_ids(self, eos: int | None, model_stops: Sequence[int]) -> tuple[int, ...]:
        """Each once, in order of trust: what the template writes, what the tokenizer names, what generates with the model by default."""
        ends = [end for end in (self._template.end_of_turn(), eos, *model_stops) if end is not None]
        if not ends:
            raise ConfigError("neither the chat template nor the tokenizer has an end-of-turn token: set tokenizer.eos_token")
        return tuple(dict.fromkeys(ends))

    def _warn(self, ordinary_stops: Sequence[int]) -> None:
        for stop in ordinary_stops:
            piece = self._tokenizer.convert_ids_to_tokens(stop)
            warn_once(
                f"generation_config.json ends responses at {piece!r} (eos_token_id {stop}), ordinary text: remove it if they go on after it"
            )
        if (ending := self._template.without_thinking_switch()) is not None:
            warn_once(
                "the chat template has no thinking switch, so prompt.student_thinking and prompt.teacher_thinking make no difference, and "
                f"every prompt ends with {ending!r}: use the model's own template if it can think"
            )

    def student(self, problem: Problem, thinking: bool | None = None) -> tuple[int, ...]:
        """Ids of the student's prompt: problem and instruction. Raises DataError beyond prompt.max_length tokens.

        thinking: the template's switch, where it is not prompt.student_thinking.
        """
        switch = self._prompt.student_thinking if thinking is None else thinking
        return self._prompt_ids(problem, self._question(problem), switch, "student")

    def teacher(self, problem: Problem, alpha: float, lender: Problem | None = None) -> TeacherContext:
        """The prompt of exposure alpha in [0, 1] and how much it reveals. Raises DataError beyond prompt.max_length tokens.

        lender: the problem whose reference and answer are shown instead of the problem's own.
        """
        shown = reveal(lender or problem, alpha, self._reveal)
        message = _paragraphs(self._question(problem), *self._exposure(shown))
        ids = self._prompt_ids(problem, message, self._prompt.teacher_thinking, "teacher")
        return TeacherContext(ids, shown.revealed, shown.segments)

    def bare_teacher(self, problem: Problem) -> TeacherContext:
        """The teacher's prompt without reference, answer and transition: problem and instruction, with the teacher's thinking switch."""
        ids = self._prompt_ids(problem, self._question(problem), self._prompt.teacher_thinking, "teacher")
        return TeacherContext(ids, 0, len(split_reference(problem).segments))

    def reference(self, problem: Problem) -> tuple[int, ...]:
        """Ids of the whole reference solution as the student would write it after its prompt, end-of-turn token included."""
        return self._response_ids(problem, reference_text(problem).strip())

    def answer(self, problem: Problem) -> tuple[int, ...]:
        r"""Ids of the bare `\boxed{…}` as a response, end-of-turn token included."""
        return self._response_ids(problem, split_reference(problem).answer)

    @cached_property
    def opening(self) -> str:
        """`<think>` when the student's prompt ends with it, else "": a response that is cut before `</think>` is in its thinking.

        Also "" when `decode` would leave `</think>` out.
        """
        begun = self._template.prompt("", self._prompt.student_thinking).rstrip().endswith(THINKING_BEGINS)
        return THINKING_BEGINS if begun and THINKING_ENDS not in self._control else ""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of response ids, without control tokens such as the end of turn."""
        control = set(self._control.values())
        return self._tokenizer.decode([i for i in ids if i not in control], skip_special_tokens=True)

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Text of each response id, control tokens by their names. A character that several tokens make is the last one's."""
        names = {number: token for token, number in self._control.items()}
        texts: list[str] = []
        context = told = 0  # ids from `context` to `told` are decoded again: what is between two pieces depends on both
        for place, number in enumerate(ids):
            if number in names:
                texts.append(names[number])
                context = told = place + 1
                continue
            before, whole = (self._tokenizer.decode(ids[context:end]) for end in (told, place + 1))
            if whole.endswith("\ufffd") and place - told < _LONGEST_CHARACTER - 1:
                texts.append("")
                continue
            texts.append(whole[len(before) :])
            context, told = told, place + 1
        return texts

    def _question(self, problem: Problem) -> str:
        return _paragraphs(problem.problem, self._prompt.instruction)

    def _exposure(self, shown: Revealed) -> list[str]:
        """The paragraphs that only the teacher sees; without a revealed segment its introduction is left out too."""
        prefix = _lines(self._prompt.reference_intro, shown.text.rstrip()) if shown.revealed else ""
        return [prefix, _lines(self._prompt.answer_intro, shown.answer), self._prompt.transition]

    def _prompt_ids(self, problem: Problem, message: str, thinking: bool, role: str) -> tuple[int, ...]:
        rendered = self._template.prompt(self._encoder.message(message), thinking)
        ids = self._encoded(problem, self._encoder.chat, rendered)
        if len(ids) > self._prompt.max_length:
            raise DataError(
                f"problem {problem.id!r}: its {role} prompt has {len(ids)} tokens, but prompt.max_length is "
                f"{self._prompt.max_length}: raise it, or leave the problem out"
            )
        return ids

    def _response_ids(self, problem: Problem, text: str) -> tuple[int, ...]:
        return (*self._encoded(problem, self._encoder.text, text), self.stop_ids[0])

    @staticmethod
    def _encoded(problem: Problem, encode: Callable[[str], tuple[int, ...]], text: str) -> tuple[int, ...]:
        try:
            return encode(text)
        except DataError as error:
            raise DataError(f"problem {problem.id!r}: {error}; leave the problem out") from error


def _lines(*parts: str) -> str:
    return "\n".join(part for part in parts if part)


def _paragraphs(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)
