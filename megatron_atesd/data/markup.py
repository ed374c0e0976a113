r"""Where in a text something is open: a formula, an environment, code, a table, braces, brackets or quotation marks.

Solutions mix Markdown and LaTeX, and people and models do not always write it well. One pass pairs what opens with what closes:

* a closing mark pairs with the nearest open mark of its kind; marks opened between the two were plain text;
* what never closes is plain text: a price in $, the `\(` of a Windows path, an interval's bracket;
* `$`, brackets and quotation marks pair within a paragraph, and brackets not across other marks;
* in code nothing is read.
"""

import re
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megatron_atesd.data.blocks import Span, fenced_code, tables

_TOKEN = re.compile(
    r"""\\(?:begin|end)\s*\{(?P<environment>[^{}\n]*)\}
      | (?P<delimiter>\\[\[\]()])
      | \\(?:[A-Za-z]+|.)                               # other commands and escaped characters: \$ \{ \\ \left
      | <(?P<tag>/?(?:table|pre|code))\b[^<>\n]*>
      | \[(?P<drawing>/?(?:asy|code))\]                 # as forums write code
      | (?P<inline>(?<!`)(?P<ticks>`+)(?:(?!'')[^`\n]){1,300}(?P=ticks)(?!`))
      | (?P<dollar>\$\$?)
      | (?P<mark>[{}()\[\]“”「」『』（）【】［］〔〕《》])
      | (?P<paragraph>\n[^\S\n]*(?=\n))""",
    re.VERBOSE,
)
_OPENING = dict(zip(")]”」』）】］〕》", "([“「『（【［〔《", strict=True))
_BRACKETS = set(_OPENING.values())
_OPENING_OF = _OPENING | {"}": "{", "\\]": "\\[", "\\)": "\\("}
_ENDS_FORMULA = ",.;:!?)]}\"'，。；：！？、）」』”"  # what may stand behind a closing dollar sign that has white space before it
_DEEPEST = 100  # of more open marks the oldest count as text: bounds the work on a hostile text


@dataclass(frozen=True)
class _Mark:
    """An opening mark, or the one that closes it. kind: the opening mark, or for named pairs the kind of pair and the name."""

    kind: str
    start: int
    end: int
    paragraph: int


def open_spans(text: str) -> list[Span]:
    """The stretches of `text` within which something is open, in order and apart; two that touch stay two."""
    code = list(fenced_code(text))
    return _united(sorted([*code, *tables(text), *_pairs(text, code)]))


def is_open(spans: Sequence[Span], position: int) -> bool:
    """Whether something is open between text[position - 1] and text[position]; `spans` are those of `open_spans`."""
    before = bisect_right(spans, position, key=lambda span: span.start) - 1
    return before >= 0 and spans[before].start < position < spans[before].end


def _united(spans: Sequence[Span]) -> list[Span]:
    united: list[Span] = []
    for span in spans:
        if united and span.start < united[-1].end:
            united[-1] = Span(united[-1].start, max(span.end, united[-1].end))
        else:
            united.append(span)
    return united


def _pairs(text: str, code: Sequence[Span]) -> Iterator[Span]:
    """All pairs of marks outside `code`; the inner ones of nested pairs too."""
    stack: deque[_Mark] = deque(maxlen=_DEEPEST)
    paragraph, position = 0, 0
    while token := _TOKEN.search(text, position):
        position = token.end()
        if is_open(code, token.start() + 1):
            continue
        if token["paragraph"]:
            paragraph += 1
        elif token["inline"]:
            yield Span(token.start(), token.end())
        elif token["dollar"]:
            kind = _dollar_kind(token["dollar"], stack, paragraph)
            position = token.start() + len(kind)
            yield from _dollar(stack, _Mark(kind, token.start(), position, paragraph), text)
        elif token.lastgroup:
            yield from _other_mark(stack, token, paragraph)


def _other_mark(stack: deque[_Mark], token: re.Match[str], paragraph: int) -> Iterator[Span]:
    """A mark that says itself whether it opens or closes."""
    group = token.lastgroup or ""
    name = token[group]
    if group in ("environment", "tag", "drawing"):
        closes, kind = token[0].startswith("\\end") or name.startswith("/"), f"{group} {name.removeprefix('/')}"
    else:
        closes, kind = name in _OPENING_OF, _OPENING_OF.get(name, name)
    mark = _Mark(kind, token.start(), token.end(), paragraph)
    if not closes:
        stack.append(mark)
    elif opening := _nearest(stack, kind, paragraph):
        yield _close(stack, opening, mark)


def _nearest(stack: deque[_Mark], kind: str, paragraph: int) -> _Mark | None:
    """The mark of this kind that was opened last, unless it is in another paragraph or another mark keeps it apart."""
    for mark in reversed(stack):
        if mark.kind == kind:
            return mark if mark.paragraph == paragraph or kind not in {"$", *_BRACKETS} else None
        if mark.kind not in _BRACKETS and (kind in _BRACKETS or kind == "$" or (kind == "$$" and mark.kind != "$")):
            return None
    return None


def _close(stack: deque[_Mark], opening: _Mark, closing: _Mark) -> Span:
    while stack.pop() != opening:
        pass
    return Span(opening.start, closing.end)


def _dollar_kind(found: str, stack: deque[_Mark], paragraph: int) -> str:
    """`$$` in a formula that `$` opened is the end of it and the start of the next."""
    return "$" if not _nearest(stack, "$$", paragraph) and _nearest(stack, "$", paragraph) else found


def _dollar(stack: deque[_Mark], mark: _Mark, text: str) -> Iterator[Span]:
    """A `$` or `$$` closes the one that is open, unless it can only open one; then the earlier was text, such as a price."""
    opening = _nearest(stack, mark.kind, mark.paragraph)
    if opening and not _must_open(opening, mark, text):
        yield _close(stack, opening, mark)
        return
    if opening:
        stack.remove(opening)
    stack.append(mark)


def _must_open(opening: _Mark, mark: _Mark, text: str) -> bool:
    """Whether `mark` starts a formula: a digit behind `$`; or white space before it and none behind, with none behind `opening`."""
    before, behind = text[mark.start - 1 : mark.start], text[mark.end : mark.end + 1]
    if mark.kind == "$" and behind.isdigit():
        return True
    spaced = text[opening.end : opening.end + 1].isspace()
    return before.isspace() and not spaced and behind != "" and not behind.isspace() and behind not in _ENDS_FORMULA
