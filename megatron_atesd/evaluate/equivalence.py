r"""Whether two final answers mean the same: what exact arithmetic decides here, everything else in a worker process.

`slow_verdict` may take any time and any memory on a hostile answer. It runs only in the worker process that `grading.py` starts:

    python -m megatron_atesd.evaluate.equivalence SECONDS MEMORY_BYTES    # one JSON pair a line in, one byte a verdict out
"""

import json
import os
import re
import resource
import signal
import sys

from megatron_atesd.evaluate.answer_text import normalised, plain
from megatron_atesd.evaluate.exact_algebra import ExactAlgebra
from megatron_atesd.evaluate.exact_numbers import exact_number
from megatron_atesd.evaluate.exact_values import Work
from megatron_atesd.evaluate.same_answer import Comparison

_STEPS, _STEPS_A_PART = 3000, 30  # at most 100 parts, or 3000 products of two terms: some tenths of a second at most
MAX_ANSWER = 300  # characters; a longer answer is not an answer, and parsing time grows with it
READY, RIGHT, WRONG = b"R", b"1", b"0"
_INTEGER = re.compile("[+-]?[0-9]+")


def fast_verdict(answer: str, gold: str) -> bool | None:
    r"""The verdict of exact arithmetic within bounded work, or None when a worker has to decide.

    Equal texts are right, whatever their length; an empty answer and one of more than 300 characters are wrong. Two numbers are compared
    exactly: `1,000` is 1000 and `0.\overline{7}` is 7/9.
    """
    answer, gold = plain(answer), plain(gold)
    if answer and answer == gold:
        return True
    if not answer or not gold or max(len(answer), len(gold)) > MAX_ANSWER:
        return False
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold):
        return int(answer) == int(gold)
    answer, gold = normalised(answer), normalised(gold)
    value, right = exact_number(answer), exact_number(gold)
    if value is not None and right is not None and (value == right or not re.search("[eE]", answer + gold)):  # 2e-1: perhaps with e
        return value == right
    work = Work(_STEPS)
    try:
        return Comparison(ExactAlgebra(work), lambda: work.spend(_STEPS_A_PART)).same(answer, gold)
    except Exception:
        return None  # too hard, too deep or odd: the worker meets the same and may fall over it


def slow_verdict(answer: str, gold: str) -> bool:
    """The verdict by meaning, see `same_answer`."""
    from megatron_atesd.evaluate.symbolic_algebra import SymbolicAlgebra  # sympy, in the worker only

    return Comparison(SymbolicAlgebra()).same(normalised(answer), normalised(gold))


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
    slow_verdict(r"\sqrt{x}", "2")  # loads sympy, before the memory is bounded and before any item's time runs

    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)  # a worker has nothing to say: an answer must not fill the log
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
