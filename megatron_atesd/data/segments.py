r"""Cutting a solution into segments: steps, else sentences and lines, else words; the first of these that yields two or more.

* A step begins after a blank line, and with a line that opens with a step marker (`2.`, `Step 2`, `## `, 第二步).
* A sentence ends with . ! ? and white space, or with 。！？ and no need of it; closing quotation marks belong to it. An abbreviation,
  the number of a list, a factorial and dots within a sum end none.
* Words are parted by white space, or by the commas of Chinese and Japanese.

No cut falls where something is open: a formula, an environment, code, a table, braces, brackets (`markup.open_spans`).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from megatron_atesd.data.blocks import Span
from megatron_atesd.data.markup import is_open

_STEP_NUMBER = r"(?:step|schritt|ステップ|手順|步骤|步驟)\s*\d+|第\s*[\d一二三四五六七八九十]+\s*步"
_MARKER = rf"(?:\*\*)?(?:{_STEP_NUMBER}|\d+[.)]\s|\d+、|\(\d+\)\s|（\d+）|[①-⑳]|#{{1,6}}\s)"
_STEP = re.compile(rf"\n[^\S\n]*\n\s*|\n(?=[^\S\n]*{_MARKER})", re.IGNORECASE)
_HAN_OR_KANA = r"[\u3040-\u30ff\u4e00-\u9fff]"
_SENTENCE = re.compile(
    rf"""(?P<full>(?:[。！？｡．]|(?<={_HAN_OR_KANA})[.!?](?={_HAN_OR_KANA}))[。！？｡．.!?]*(?P<quote>[」』”’）】］"')\]*$]*)\s*)
       | (?P<mark>[.!?।؟۔]+)[”’"')\]*$]*\s+
       | \n\s*""",
    re.VERBOSE,
)
_WORD = re.compile(r"\s+|[，、；：][」』”’）】]*\s*")

_TITLES = {"Dr", "Mr", "Mrs", "Ms", "Prof", "St", "Jr"}
_NEVER_LAST = {
    "e.g",
    "i.e",
    "cf",
    "vs",
    "viz",
    "resp",
    "approx",
    "ca",
    "fig",
    "figs",
    "eq",
    "eqs",
    "eqn",
    "eqns",
    "thm",
    "z.b",
    "d.h",
    "bzw",
    "vgl",
    "p.ex",
    "p.ej",
    "w.r.t",
    "s.t",
    "a.k.a",
}
_BEFORE_A_NUMBER = {
    "no",
    "nos",
    "nr",
    "ex",
    "sec",
    "secs",
    "ch",
    "p",
    "pp",
    "vol",
    "def",
    "lem",
    "cor",
    "prop",
    "rem",
    "ref",
    "tab",
    "art",
    "abb",
    "gl",
}
_LAST_WORD = re.compile(r"(?<![\w.])(?:[^\W\d_]+\.)*[^\W\d_]+\Z")
_FIRST_INITIAL = re.compile(r"[A-Z]\.")
_LATER_INITIAL = re.compile(r"\b[A-Z]\.\s*[A-Z]\Z")
_LIST_NUMBER = re.compile(r"(?:\A|\n)[\s>*#-]*(?:(?:step|case|part)\s+)?(?:\d+|[A-Za-z]|[ivxIVX]+)\Z", re.IGNORECASE)
_FACTORIAL = re.compile(r"(?:\d|\)|(?<![^\W_])[A-Za-z])\Z")
_LOOK_BACK = 60  # characters; longer than any abbreviation or list number


def cut(text: str, end: int, spans: Sequence[Span]) -> tuple[str, ...]:
    """text[:end] in segments, each with the white space that follows it; () when it is blank. spans: `open_spans(text)`.

    "".join of the result is text[:end], and every segment has a character that is no white space.
    """
    body = text[:end]
    segments: tuple[str, ...] = ()
    for candidates in (_steps, _sentences, _words):
        segments = _cut_at(body, (place for place in candidates(body) if not is_open(spans, place)))
        if len(segments) >= 2:
            break
    return segments


def _cut_at(body: str, places: Iterable[int]) -> tuple[str, ...]:
    """`body` cut at ascending places, without those that would leave a segment blank."""
    last = len(body.rstrip())
    if last == 0:
        return ()
    cuts = [0]
    for place in places:
        if place < last and not body[cuts[-1] : place].isspace() and place > cuts[-1]:
            cuts.append(place)
    return tuple(body[a:b] for a, b in pairwise([*cuts, len(body)]))


def _steps(body: str) -> Iterator[int]:
    return (match.end() for match in _STEP.finditer(body))


def _words(body: str) -> Iterator[int]:
    return (match.end() for match in _WORD.finditer(body))


def _sentences(body: str) -> Iterator[int]:
    return (match.end() for match in _SENTENCE.finditer(body) if not _goes_on(body, match))


def _goes_on(body: str, match: re.Match[str]) -> bool:
    """Whether the sentence goes on behind this mark."""
    before, behind = body[max(0, match.start() - _LOOK_BACK) : match.start()], body[match.end() : match.end() + 2]
    if match["full"]:
        decimal = match["full"] == "．" and before[-1:].isdigit() and behind[:1].isdigit()
        return decimal or (match["quote"] != "" and behind[:1] in set("とがはを、，"))
    if not match["mark"]:
        return False
    if match["mark"] == "." and (_is_abbreviation(before, behind) or _LIST_NUMBER.search(before)):
        return True
    if "\n" in match[0]:
        return False
    if behind[:1] in set("=+-*/<>≤≥×·÷&^|") or (len(match["mark"]) > 1 and behind[:1].islower()):
        return True  # a sum with dots, a factorial in a formula
    return match["mark"] == "!" and bool(_FACTORIAL.search(before)) and not behind[:1].isupper()


def _is_abbreviation(before: str, behind: str) -> bool:
    """Whether the word that ends `before` keeps its full stop when `behind` follows it."""
    found = _LAST_WORD.search(before)
    if found is None:
        return False
    word = found[0]
    if word in _TITLES or word.lower() in _NEVER_LAST:
        return True
    if word.lower() in _BEFORE_A_NUMBER and behind.removeprefix("(")[:1].isdigit():
        return True
    if len(word) == 1 and (_FIRST_INITIAL.match(behind) or _LATER_INITIAL.search(before)):
        return True
    return (len(word) == 1 or "." in word or word in ("etc", "al")) and behind[:1].islower()
