r"""Whether two final answers mean the same: an exact path for integers and equal texts, math-verify for the rest.

`slow_verdict` may take any time and any memory on a hostile answer. It runs only in the worker process that `grading.py` starts:

    python -m megatron_atesd.evaluate.equivalence SECONDS MEMORY_BYTES    # one JSON pair a line in, one byte a verdict out
"""

import json
import logging
import os
import re
import resource
import signal
import sys
from typing import Any

MAX_ANSWER = 300  # characters; a longer answer is not an answer, and parsing time grows with it
READY, RIGHT, WRONG = b"R", b"1", b"0"
_NO_ALARM: Any = None  # math-verify takes None for "set no alarm"; its annotation says int

_INTEGER = re.compile(r"[+-]?(?:\d+|\d{1,3}(?:,\d{3})+)")
_MATH_MARKS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
_PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])|\\mp(?![A-Za-z])|±|∓")
_LEFT_SIDE = re.compile(r"^\s*[A-Za-z]\s*=")


def plain(answer: str) -> str:
    """The answer without the marks around it: mathematics delimiters, a final full stop, repeated white space."""
    text = " ".join(answer.split()).removesuffix(".").strip()
    for opening, closing in _MATH_MARKS:
        if len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
            return text[len(opening) : -len(closing)].strip()
    return text


def fast_verdict(answer: str, gold: str) -> bool | None:
    """The verdict that needs no parser, or None when mathematics has to decide.

    Equal texts are right, whatever their length; two integers are compared as integers (`1,000` is 1000); an empty answer and one of
    more than 300 characters are wrong.
    """
    answer, gold = plain(answer), plain(gold)
    if answer and answer == gold:
        return True
    if not answer or not gold or max(len(answer), len(gold)) > MAX_ANSWER:
        return False
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold):
        return int(answer.replace(",", "")) == int(gold.replace(",", ""))
    return None


def bracket_kind(answer: str) -> str | None:
    r"""`tuple` for `(a, b)`, `set` for `\{a, b\}`, else None. An open interval looks like a tuple and is one here."""
    text = answer.replace("\\left", "").replace("\\right", "").strip()
    if text.startswith("\\{") and text.endswith("\\}"):
        return "set"
    if not (text.startswith("(") and text.endswith(")")):
        return None
    depth, comma = 0, False
    for place, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        comma |= character == "," and depth == 1
        if depth == 0 and place < len(text) - 1:
            return None
    return "tuple" if comma else None


def expand_plus_minus(answer: str) -> str:
    r"""`\frac{1 \pm \sqrt5}{2}` as the two values it stands for. A `\pm` outside every brace is left to math-verify, which knows it."""
    signs = list(_PLUS_MINUS.finditer(answer))
    if not any(answer.count("{", 0, sign.start()) > answer.count("}", 0, sign.start()) for sign in signs):
        return answer
    value = _LEFT_SIDE.sub("", answer)
    upper = _PLUS_MINUS.sub(lambda sign: "+" if sign[0] in ("\\pm", "±") else "-", value)
    lower = _PLUS_MINUS.sub(lambda sign: "-" if sign[0] in ("\\pm", "±") else "+", value)
    return f"{upper}, {lower}"


def slow_verdict(answer: str, gold: str) -> bool:
    r"""math-verify's verdict, with the corrections that it needs.

    Both sides go in as `$…$`, otherwise `20\sqrt{3}` is read as 20. Numbers must agree to 10 decimals (the library's 6 take 34.641016 for
    20√3). A tuple never equals a set, which the library lets pass as an interval with these ends.
    """
    from math_verify import parse, verify

    answer, gold = plain(answer), plain(gold)
    if {bracket_kind(answer), bracket_kind(gold)} == {"tuple", "set"}:
        return False
    read_gold, read_answer = (parse(f"${expand_plus_minus(text)}$", parsing_timeout=_NO_ALARM) for text in (gold, answer))
    return bool(verify(read_gold, read_answer, float_rounding=10, timeout_seconds=None))


def confine(memory_bytes: int) -> None:
    """Bound this process: address space, no core file, deaf to Ctrl-C (its parent ends it). SIGALRM keeps its deadly default."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def serve(seconds: float, memory_bytes: int) -> None:
    """Answer each line `[answer, gold]` of stdin with one byte on stdout until stdin ends.

    The parent enforces the time limit. The alarm at twice that limit ends a worker whose parent was killed, even inside C code.
    """
    verdicts = os.fdopen(os.dup(1), "wb", buffering=0)
    logging.disable(logging.CRITICAL)
    slow_verdict("1/2", "0.5")  # loads math-verify, before the memory is bounded and before any item's time runs

    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)  # the LaTeX parser reports every token that it does not know
    confine(memory_bytes)
    verdicts.write(READY)
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_REAL, 2 * seconds + 1)
        try:
            verdict = RIGHT if slow_verdict(*json.loads(line)) else WRONG
        except Exception:
            verdict = WRONG  # an answer that cannot be read is not right, whatever the parser raised
        signal.setitimer(signal.ITIMER_REAL, 0)
        verdicts.write(verdict)


if __name__ == "__main__":
    serve(float(sys.argv[1]), int(sys.argv[2]))
