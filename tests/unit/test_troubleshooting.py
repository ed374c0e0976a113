"""docs/troubleshooting.md quotes messages that this project really prints."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
OURS = PAGE[: PAGE.index("## Symptoms without a message")]
ROW = re.compile(r"^\| (?:``(.+?)``|`(.+?)`) \| ", re.MULTILINE)
MESSAGES = [long or short for long, short in ROW.findall(OURS)]


def as_text(node: ast.AST) -> str | None:
    """A text in the source, with … for each value that is put into it."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else "…" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def texts_of(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        text = as_text(node)
        if text is not None:
            yield text


@cache
def source_texts() -> tuple[str, ...]:
    files = [file for room in ("megatron_atesd", "checkpoints_convert", "tools") for file in (ROOT / room).rglob("*.py")]
    return tuple(text for file in files for text in texts_of(ast.parse(file.read_text(encoding="utf-8"))))


def has_in_order(text: str, pieces: list[str]) -> bool:
    place = 0
    for piece in pieces:
        place = text.find(piece, place)
        if place < 0:
            return False
        place += len(piece)
    return True


def is_said(message: str) -> bool:
    """Whether one text of the source has all pieces of the message between its …, in their order."""
    return any(has_in_order(text, message.split("…")) for text in source_texts())


@pytest.mark.parametrize("message", MESSAGES)
def test_a_quoted_message_is_in_the_source(message: str):
    assert len(message.replace("…", "")) > 15, "too short to tell anything"
    assert is_said(message)


def test_the_page_explains_at_least_forty_messages():
    assert len(MESSAGES) >= 40
    assert len(set(MESSAGES)) == len(MESSAGES)
