r"""Texts as they are compared for contamination: what is only layout goes, and n words in a row make an n-gram.

`$\dfrac{1}{2} \cdot x$` and `\( \frac{1}{2}\cdot  X \)` are the same text, with the words frac 1 2 cdot x.
"""

import re
from collections.abc import Iterator

Gram = tuple[str, ...]

_LAYOUT = re.compile(r"\\(?:left|right|displaystyle|q?quad|[bB]igg?[lr]?)(?![A-Za-z])|\\[,;:! ()\[\]]|[$~]")
_FRACTION = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_WORD = re.compile(r"[^\W_]+")


def plain(text: str) -> str:
    """The text in small letters, with the marks and spaces of formulas as white space."""
    return _LAYOUT.sub(" ", _FRACTION.sub(r"\\frac", text)).casefold()


def whole(text: str) -> str:
    """What makes two texts the same: the plain text without any white space; signs and operators count."""
    return "".join(plain(text).split())


def words(text: str) -> list[str]:
    """The runs of letters and digits of the plain text; signs do not count."""
    return _WORD.findall(plain(text))


def grams(words: list[str], n: int) -> Iterator[Gram]:
    """Each n words in a row, in order; none when there are fewer than n."""
    return zip(*(words[start:] for start in range(n)), strict=False)
