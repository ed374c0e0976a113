r"""Where something is open: whole constructs are never cut, and what never closes is text."""

import sys
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_atesd.data.markup import is_open, open_spans
from megatron_atesd.data.reveal import split_reference
from megatron_atesd.data.segments import cut
from megatron_atesd.records import Problem

# Each is one whole, of which no cut may fall within; what is before ¦ only leads to it.
WHOLES = [
    "$c =\n5$",
    "$5! = 120$",
    "$a. b$",
    "$ x + 1 $",
    "$n \\text{ if $m$ is odd. Else } k$",
    "$$\na = 1. \n\nb = 2\n$$",
    "\\[\n x = 3. \n\n y = 4 \n\\]",
    "\\(p. q = \n 7\\)",
    "\\begin{align*}\na &= 1 \\\\[2pt]\n\nb &= 2. \n\\end{align*}",
    "\\begin{cases} 1. & a \\\\\n\n\\begin{array}{c} x. \\\\ y \\end{array} & b \\end{cases}",
    "\\begin{tabular}{l}\n$u$ costs \\$5. \\\\\n\n# 1. \n\\end{tabular}",
    "\\text¦{A. or B. }",
    "\\footnote¦{One. Two $x$.\n\nThree.}",
    "\n```python\n# 1. first\n\nprint('$')\n```\n",
    "\n~~~\nStep 1. {\n\nStep 2. \n~~~\n",
    "\n````\n```\n\n``` \n````\n",
    "\nRun this: ¦```\nx. y\n\nz\n```\n",
    "\r\n```\r\n1. a\r\n\r\n2. b\r\n```\r\n",
    "`a. b $ c`",
    "\n| n | f |\n|---|---|\n| 1 | a. b |\n| 2 | c |\n",
    "\nn | f\n--- | ---\n1 | a. b\n2 | c\n",
    "\n+---+---+\n| 1 | 2 |\n+---+---+\n",
    "[asy] draw(A--B);\n\ndot(C); [/asy]",
    "<table>\n<tr>1. </tr>\n\n</table>",
    "(see this. Or that.)",
    "（一。二。）",
    "「そう。いや。」",
    "“One. Two.”",
    "$[0, 1)$",
    "$(0, 1]$",
]
PROSE = [
    "It costs $5. ",
    "So it is. ",
    "\\$3 or \\$4 a piece. ",
    "那么。",
    "\n\n",
    "\n",
    "2. Then ",
    "\r\n\r\n",
    "Ｗhy？ ",
    "C:\\(new\\[x ",
    "1) a ",
]
PIECES = st.lists(st.sampled_from([*((True, whole) for whole in WHOLES), *((False, prose) for prose in PROSE)]), min_size=1, max_size=8)


def wholes_of(pieces: list[tuple[bool, str]]) -> tuple[str, list[tuple[int, int]]]:
    """The text of the pieces, each a paragraph, and where the wholes lie in it: the slow and obvious record of what is open where."""
    text, wholes = "", []
    for whole, piece in pieces:
        lead, _, rest = piece.rpartition("¦")
        text += "\n\n" + lead
        inner = rest.strip("\r\n")  # the ends of lines around a block are not of it
        if whole:
            start = len(text) + rest.index(inner)
            wholes.append((start, start + len(inner)))
        text += rest
    return text, wholes


@given(PIECES)
def test_no_segment_ends_within_a_whole(pieces: list[tuple[bool, str]]) -> None:
    text, wholes = wholes_of(pieces)
    cuts = accumulate(map(len, cut(text, len(text), open_spans(text))))
    assert [text[:c] for c in cuts for start, end in wholes if start < c < end] == []


@pytest.mark.parametrize("whole", WHOLES)
def test_within_a_whole_everything_is_open_and_around_it_nothing(whole: str) -> None:
    text, [(start, end)] = wholes_of([(False, "Before. "), (True, whole), (False, "After. ")])
    spans = open_spans(text)
    assert [p for p in range(start + 1, end) if not is_open(spans, p)] == []
    assert [p for p in (*range(start + 1), *range(end, len(text) + 1)) if is_open(spans, p)] == []


@pytest.mark.parametrize(
    "text",
    [
        "It costs $5. Then more.",
        "From $5 to $6. Then $7. Done.",
        "\\$5 and \\$6. Then.",
        "A lone $ sign. Then.\n\nAnd a $ again. So.",
        "Open \\[ x = 1. Then.\n\nMore.",
        "Open \\( x. Then more.",
        "C:\\(new\\[dir\\begin. Then.",
        "\\begin{align} x. Then.\n\nMore.",
        "x. \\end{align} y. \\] z \\) $",
        "Open { x. Then.",
        "} x. ) y. ] z.",
        "```python\nnever closed. So.\n\nMore.",
        "~~~\nnever closed.",
        "1) First. 2) Second.",
        "an interval (0. Then.\n\n1) More.",
        "a ` b. c",
        "$$ x. Then.\n\nMore.",
        "a | b. c",
        "|x| < 3. So.",
    ],
)
def test_what_never_closes_is_text(text: str) -> None:
    assert open_spans(text) == []


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("It costs $5. So $x = 3. y$ holds.", ["$x = 3. y$"]),
        ("Between $10 and $20, let $p. q$ be it.", ["$p. q$"]),
        ("He pays $5 (as $x$ is 5).", ["(as $x$ is 5)"]),
        ("$a$$b$ c", ["$a$", "$b$"]),
        ("$$a$$ and $b$", ["$$a$$", "$b$"]),
        ("$$ is money. $x. y$ is not.", ["$x. y$"]),
        ("Open $x. \n\nNew $y. z$ done.", ["$y. z$"]),
        ("\\[ open.\n\nThen \\[x. y\\] ok.", ["\\[x. y\\]"]),
        ("\\begin{a} \\begin{b} x \\end{b}", ["\\begin{b} x \\end{b}"]),
        ("(see $[0,1)$ and more. Then)", ["(see $[0,1)$ and more. Then)"]),
        ("f(x) = {a, $b$} end", ["(x)", "{a, $b$}"]),
        ("Let \\{x. y\\} be.", []),
        ("$f''$ and $g''$", ["$f''$", "$g''$"]),
    ],
)
def test_the_stretches_that_are_kept(text: str, kept: list[str]) -> None:
    assert [text[a:b] for a, b in open_spans(text)] == kept


def test_an_answer_within_a_formula_of_several_lines_is_part_of_it() -> None:
    text = "One. Two.\n\\[\nx = 1\n\\boxed{5}\n\\]"
    reference = split_reference(Problem("id", "p", text, "5"))
    assert reference.segments[-1] == "\\[\nx = 1\n\\boxed{5}\n\\]"


SOUP = [
    "$",
    "$$",
    "\\(",
    "\\)",
    "\\[",
    "\\]",
    "{",
    "}",
    "\\begin{a}",
    "\\end{a}",
    "```",
    "~~~",
    "`",
    "|",
    "---",
    "\n",
    "\n\n",
    " ",
    "a",
    ". ",
    "(",
    ")",
    "5",
]


@given(st.lists(st.sampled_from(SOUP), max_size=40).map("".join))
def test_spans_of_any_text_are_ordered_and_apart(text: str) -> None:
    spans = open_spans(text)
    assert all(0 <= a < b <= len(text) for a, b in spans)
    assert all(one[1] <= two[0] for one, two in pairwise(spans))


@given(st.lists(st.sampled_from([*SOUP, "。", "\r", "1. ", "\\", "「", "」"]), max_size=40).map("".join))
def test_segments_are_the_text_to_the_character_and_none_is_blank(text: str) -> None:
    segments = cut(text, len(text), open_spans(text))
    assert "".join(segments) == (text if text.strip() else "")
    assert all(segment.strip() for segment in segments)


@pytest.mark.parametrize("mark", ["$a ", "{", "(", "\\[", "\\begin{x}", "```a\n", "`", "| a | b |\n", "\\boxed{1} "])
def test_twice_the_text_takes_no_more_than_a_few_times_the_steps(mark: str) -> None:
    """Work is counted as calls of the scanner's helpers, not in seconds."""
    assert steps(mark * 4000) < 3 * steps(mark * 2000)


def steps(text: str) -> int:
    count = 0

    def counted(*_: object) -> None:
        nonlocal count
        count += 1

    sys.setprofile(counted)
    try:
        open_spans(text)
    finally:
        sys.setprofile(None)
    return count
