"""From rendered chats to ids: what the template writes may be a control token, what a message says is plain characters."""

import json
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import uuid4

from tokenizers import AddedToken, Tokenizer

from megatron_atesd.data.chat_template import token_pattern
from megatron_atesd.errors import DataError


class ChatEncoder:
    """Encodes as a tokenizer does, but control tokens only where the template wrote them.

    It has a twin of the tokenizer, in which each control token goes by a private name: no text can hold it, and only this class writes it.
    All else is the tokenizer's, pieces across the borders of messages too, so that a chat without control tokens in its messages has the
    ids that the tokenizer itself gives.
    """

    def __init__(self, tokenizer: Any, control: Iterable[str]) -> None:
        """tokenizer: of transformers, on the tokenizers library. control: texts of its control tokens.

        Raises DataError for a tokenizer of another kind.
        """
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise DataError(f"{type(tokenizer).__name__} is no tokenizer of the tokenizers library; save it with a tokenizer.json")
        tokens = list(control)
        secret = str(uuid4().int)  # digits, which templates leave alone
        self._names = {token: f"{secret}1{number:06d}" for number, token in enumerate(tokens)}
        self._placeholders = {token: f"{secret}0{number:06d}" for number, token in enumerate(tokens)}
        self._control, self._placeholder = token_pattern(tokens), token_pattern(self._placeholders.values())
        self._meant = {placeholder: token for token, placeholder in self._placeholders.items()}
        self._twin = _renamed(tokenizer.backend_tokenizer, self._names)

    def message(self, text: str) -> str:
        """`text` as it is given to the template: placeholders stand for control tokens."""
        return self._control.sub(lambda found: self._placeholders[found[0]], text)

    def chat(self, rendered: str) -> tuple[int, ...]:
        """Ids of a template's output for such messages. Raises DataError for characters that the tokenizer has no id for."""
        named = self._control.sub(lambda found: self._names[found[0]], rendered)
        return self.text(self._placeholder.sub(lambda found: self._meant[found[0]], named))

    def text(self, text: str) -> tuple[int, ...]:
        """Ids of `text`, none of them a control token's. Raises DataError for characters that the tokenizer has no id for."""
        try:
            return tuple(self._twin.encode(text, add_special_tokens=False).ids)
        except Exception as error:  # the library raises nothing more exact
            raise DataError(f"the tokenizer cannot encode it ({error})") from error


def _renamed(backend: Any, names: Mapping[str, str]) -> Tokenizer:
    """A copy of the tokenizer whose tokens `names` go by other names, under their old ids, and are found before all else."""
    state = json.loads(backend.to_str())
    model = state["model"]
    for token in state["added_tokens"]:
        if token["content"] in names:
            token.update(content=names[token["content"]], normalized=False, special=False)
    pieces = model["vocab"]  # words with ids, or (Unigram) pieces with scores
    if isinstance(pieces, dict):
        model["vocab"] = {names.get(piece, piece): number for piece, number in pieces.items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in pieces]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [
            (left, right) for left, right in model["merges"] if not names.keys() & {left, right, left + right.removeprefix(prefix)}
        ]
    state |= {"post_processor": None, "truncation": None, "padding": None}
    twin = Tokenizer.from_str(json.dumps(state))
    found_already = {token["content"] for token in state["added_tokens"]}
    twin.add_tokens([AddedToken(name, normalized=False) for name in names.values() if name not in found_already])
    twin.encode_special_tokens = True  # special ones that are not in `names`, if any, are characters as well
    return twin
