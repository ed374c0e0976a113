"""What a tokenizer's chat template writes around messages: rendering it, and finding the token that ends an assistant's turn."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from megatron_atesd.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Messages that templates leave as they are, in upper case too. Only ever rendered, never encoded.
_USER, _ASSISTANT = "70815162342", "90271828182"


class ChatTemplate:
    """The chat template of a tokenizer. Raises ConfigError when there is none."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        if not tokenizer.chat_template:
            raise ConfigError("the tokenizer has no chat template: use an instruct model's tokenizer, or set tokenizer.chat_template")
        self._tokenizer: Any = tokenizer

    def prompt(self, message: str, thinking: bool) -> str:
        """A user's message and the opening of the answer. Raises ConfigError when the template cannot be rendered."""
        return self._render([_turn("user", message)], add_generation_prompt=True, enable_thinking=thinking)

    def without_thinking_switch(self) -> str | None:
        """What every prompt ends with after the message, of a template that the thinking switch does not change; None of others."""
        on, off = (self.prompt(_USER, thinking) for thinking in (True, False))
        return on.rpartition(_USER)[2] if on == off else None

    def end_of_turn(self) -> int | None:
        """Id of the added token that the template writes after an assistant's message, a special one if there is one; None without any.

        A template may write it only before a further turn.
        """
        added = added_tokens(self._tokenizer)
        special = special_tokens(self._tokenizer)
        find = token_pattern(added).findall
        turns = [_turn("user", _USER), _turn("assistant", _ASSISTANT)]
        for closing in (self._closing(turns, find), self._closing([*turns, _turn("user", _USER)], find)):
            for token in (*(token for token in closing if token in special), *closing):
                return added[token]
        return None

    def _closing(self, turns: list[dict[str, str]], find: Any) -> list[str]:
        """The added tokens between the assistant's message and the end, or what opens the user's next turn."""
        try:
            text = self._render(turns)
        except ConfigError:  # there are templates for prompts only
            return []
        before, _, after = text.partition(_ASSISTANT)
        opening, closing = find(before.partition(_USER)[0]), find(after.partition(_USER)[0])
        while len(turns) > 2 and opening and closing and opening[-1] == closing[-1]:
            opening, closing = opening[:-1], closing[:-1]
        return [token for token in closing if token not in opening[-1:]]

    def _render(self, turns: list[dict[str, str]], **switches: bool) -> str:
        try:
            return self._tokenizer.apply_chat_template(turns, tokenize=False, **switches)
        except Exception as error:  # a template is a small foreign program (run in a sandbox): it may raise anything
            raise ConfigError(f"the tokenizer's chat template cannot be rendered ({error}): repair chat_template.jinja") from error


def added_tokens(tokenizer: Any) -> dict[str, int]:
    """Text and id of the tokens that a tokenizer finds before it cuts text into pieces, special or not."""
    return {token.content: number for number, token in tokenizer.added_tokens_decoder.items()} | special_tokens(tokenizer)


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """Text and id of the special ones: all that are marked so, and those that have a name, such as eos_token."""
    marked = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    vocabulary = tokenizer.get_vocab()
    return marked | {token: vocabulary[token] for token in tokenizer.all_special_tokens if token in vocabulary}


def token_pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """Finds any of `tokens` in a text, at one place the longest."""
    longest_first: Sequence[str] = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
