"""Majority vote over the boxed answers of a problem's samples. Answers vote together when they mean the same.

All right answers are one party, since each of them means the same as the gold answer. Among wrong ones, equal texts vote together, and then
those that the grader calls equal: each text joins the first party whose first text it equals.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from megatron_atesd.data.boxes import final_boxed
from megatron_atesd.evaluate.answer_text import plain

Pair = tuple[str, str]
Same = Callable[[Sequence[Pair]], Sequence[bool]]


def majority_values(texts_NK: Sequence[Sequence[str]], right_NK: Sequence[Sequence[bool]], same: Same) -> NDArray[np.float64]:
    """Probability that the vote of each problem's samples is right, [N] float64.

    texts_NK: responses. right_NK: the verdict on each. same: whether the two answers of each pair mean the same, `Grader.same`.
    A response without an answer does not vote; without any vote the value is 0. A tie is drawn by lot: right answers that share the lead
    with n − 1 other parties count 1 / n, which is the expected value. Only pairs that can change a value are asked about, in one call.
    """
    rows = [(sum(right), _wrong_votes(texts, right)) for texts, right in zip(texts_NK, right_NK, strict=True)]
    open_rows = [votes for right, votes in rows if 0 < right <= sum(votes.values())]
    pairs = list(dict.fromkeys(pair for votes in open_rows for pair in combinations(votes, 2)))
    equal = dict(zip(pairs, same(pairs), strict=True)) if pairs else {}
    return np.array([_value(right, votes, equal) for right, votes in rows], dtype=np.float64)


def _wrong_votes(texts: Sequence[str], right: Sequence[bool]) -> Counter[str]:
    """How often each wrong answer, as text, was given; in the order of the first time."""
    boxed = [final_boxed(text) for text, verdict in zip(texts, right, strict=True) if not verdict]
    return Counter(plain(answer) for answer in boxed if answer is not None)


def _value(right: int, votes: Mapping[str, int], equal: Mapping[Pair, bool]) -> float:
    if right == 0 or right > sum(votes.values()):
        return float(right > 0)
    parties: dict[str, int] = {}
    for answer, count in votes.items():
        first = next((party for party in parties if equal[party, answer]), answer)
        parties[first] = parties.get(first, 0) + count
    most = max(parties.values())
    return 0.0 if most > right else 1.0 / (1 + list(parties.values()).count(right))
