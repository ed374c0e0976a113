r"""The `\boxed{…}` of a solution or response: all of them, the last, and those that together give the final answer."""

import re
from typing import NamedTuple

_BRACES = re.compile(r"(?P<box>\\boxed\s*\{)|\\.|\{|\}", re.DOTALL)
_SPACE = r"\s|~|\\[,;:! ]|\\q?quad(?![A-Za-z])"
# What may stand in a box that is only to be filled in, such as an instruction's.
_UNFILLED = re.compile(rf"(?:{_SPACE}|[{{}}$._?…]|\\_|\\(?:text|textbf|mathrm|mathbf|phantom|[lc]?dots|square|Box)(?![A-Za-z]))*")
_NAME = r"[A-Za-z](?:_(?:\w|\{\w+\}))?\s*="
_CONJUNCTION = r"(?:and|or|und|oder|et|ou)(?![A-Za-z])|[或和及与與]|または|および|と"
_IN_A_LIST = re.compile(
    rf"(?:{_SPACE}|[$,;.&、，；{{}}]|\\\\|\\[()\[\]]|\\(?:text|mathrm|mbox|lor|land|vee|wedge)(?![A-Za-z])|{_CONJUNCTION}|{_NAME})*"
)
THINKING_BEGINS, THINKING_ENDS = "<think>", "</think>"
_LONGEST_GAP = 80  # characters between two boxes of one list


class Box(NamedTuple):
    r"""text[start:end] is `\boxed{content}`."""

    start: int
    end: int
    content: str


def boxes(text: str) -> list[Box]:
    r"""The balanced `\boxed{…}` of `text` that hold something, in order of their start; escaped braces do not count."""
    open_braces: list[tuple[int, int] | None] = []
    found: list[Box] = []
    for token in _BRACES.finditer(text):
        if token["box"]:
            open_braces.append((token.start(), token.end()))
        elif token[0] == "{":
            open_braces.append(None)
        elif token[0] == "}" and open_braces and (box := open_braces.pop()):
            found.append(Box(box[0], token.end(), text[box[1] : token.start()]))
    return sorted(box for box in found if not _UNFILLED.fullmatch(box.content))


def last_boxed(text: str) -> str | None:
    r"""Content of the last balanced `\boxed{…}` of `text` that holds something, or None."""
    found = boxes(text)
    return found[-1].content if found else None


def final_boxed(response: str) -> str | None:
    """`last_boxed` of what stands behind the thinking of a response; None without a box there, and when the thinking has not ended.

    Thinking ends at the last `</think>`. A box in it is a draft: it is no answer.
    """
    said = response.rpartition(THINKING_ENDS)[2]
    return None if THINKING_BEGINS in said else last_boxed(said)


def final_boxes(text: str) -> list[Box]:
    r"""The last box and those listed with it, in order: 2 and 9 of "$x = \boxed{2}$ or $x = \boxed{9}$"; [] without a box."""
    found = boxes(text)
    first = len(found) - 1
    while first > 0 and _listed(text[found[first - 1].end : found[first].start]):
        first -= 1
    return found[max(0, first) :]


def _listed(between: str) -> bool:
    return len(between) <= _LONGEST_GAP and _IN_A_LIST.fullmatch(between) is not None
