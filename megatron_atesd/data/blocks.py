"""Blocks of whole lines that belong together: fenced code and tables."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple


class Span(NamedTuple):
    """text[start:end] belongs together; a cut at start or at end is none within it."""

    start: int
    end: int


_FENCE = re.compile(r"^(?P<before>[^`\n]*?)(?P<mark>`{3,}|~{3,})(?P<after>[^`\n]*)$", re.MULTILINE)
_LIST_MARK = re.compile(r"[ \t>]*(?:[-*+]|\d+[.)])?[ \t]*")
_RULE = re.compile(r"\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)+\|?|\|[ \t]*:?-+:?[ \t]*\|")
_GRID = re.compile(r"\+(?:[-=]+\+)+")


def fenced_code(text: str) -> Iterator[Span]:
    """Blocks between lines with ``` or ~~~. A fence closes one that is no longer than itself; what no fence closes is text.

    In front of an opening fence may stand a list's mark, and in front of backquotes words, as in "Run this: ```python".
    """
    lines = [m for m in _FENCE.finditer(text) if m["mark"][0] == "`" or _LIST_MARK.fullmatch(m["before"])]
    closing = _longest_closing(lines)
    opening: re.Match[str] | None = None
    for number, line in enumerate(lines):
        if opening is None:
            opening = line if len(line["mark"]) <= closing[number].get(line["mark"][0], 0) else None
        elif _may_close(line) and line["mark"].startswith(opening["mark"]):
            yield Span(opening.start("mark"), line.end("mark"))
            opening = None


def _may_close(line: re.Match[str]) -> bool:
    return not line["after"].strip()


def _longest_closing(lines: Sequence[re.Match[str]]) -> list[dict[str, int]]:
    """For each fence: by character, the length of the longest fence behind it that may close one."""
    longest: dict[str, int] = {}
    found: list[dict[str, int]] = []
    for line in reversed(lines):
        found.append(dict(longest))
        if _may_close(line):
            longest[line["mark"][0]] = max(longest.get(line["mark"][0], 0), len(line["mark"]))
    return found[::-1]


def tables(text: str) -> Iterator[Span]:
    """Tables: successive lines with bars of which one is a rule (`--- | ---`, `+---+`), or two that are rows in outer bars."""
    lines = list(_lines(text))
    for barred, group in groupby(lines, key=lambda line: "|" in line[1] or bool(_GRID.fullmatch(line[1]))):
        rows = list(group)
        if barred and len(rows) > 1 and (any(map(_is_rule, rows)) or all(map(_is_row, rows))):
            start, _ = rows[0]
            last, content = rows[-1]
            yield Span(start, last + len(content))


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Each line without the marks of a quotation and the white space around it, and where it then starts."""
    start = 0
    for line in text.split("\n"):
        content = line.lstrip(" \t>")
        yield start + len(line) - len(content), content.rstrip()
        start += len(line) + 1


def _is_rule(line: tuple[int, str]) -> bool:
    return bool(_RULE.fullmatch(line[1]) or _GRID.fullmatch(line[1]))


def _is_row(line: tuple[int, str]) -> bool:
    return line[1].startswith("|") and line[1].endswith("|") and line[1].count("|") > 2
