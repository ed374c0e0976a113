"""Another problem for each: the control in which the teacher sees a worked solution, but not of the question that it is asked."""

import hashlib
from collections.abc import Sequence
from itertools import groupby

from megatron_atesd.data.problems import normalised
from megatron_atesd.data.reveal import split_reference
from megatron_atesd.errors import DataError
from megatron_atesd.records import Problem


class ShuffledReferences:
    """Whose reference stands for that of each problem; depends on the seed and the problems, not on their order.

    Problems whose references have equally many segments exchange them in a random ring. Where a problem is alone with its number of
    segments, the next shorter one lends it its reference (to the shortest the next longer one).
    """

    def __init__(self, seed: int, *files: Sequence[Problem]) -> None:
        """files: problems get references from their own file. Raises DataError for a file without two different problems."""
        self.lender: dict[str, Problem] = {}
        for problems in files:
            self.lender |= _lenders(problems, seed)

    def of(self, problem: Problem) -> Problem:
        """The problem whose reference is shown for `problem`, which is one of the files'; never one with the same question."""
        return self.lender[normalised(problem.problem)]


def _lenders(problems: Sequence[Problem], seed: int) -> dict[str, Problem]:
    """By question: the same question twice in a file is one problem, or it could get its own reference."""
    distinct = {normalised(problem.problem): problem for problem in problems}
    if len(distinct) < 2:
        raise DataError(
            f"exposure.reference shuffled needs two different problems in a file, but that of problem {problems[0].id!r} has one: add some"
        )
    segments = {question: len(split_reference(problem).segments) for question, problem in distinct.items()}
    order = sorted(distinct, key=lambda question: (segments[question], _drawn(seed, question)))
    lender: dict[str, Problem] = {}
    for _, group in groupby(order, key=segments.__getitem__):
        ring = list(group)
        lender |= {question: distinct[ring[place - 1]] for place, question in enumerate(ring)} if len(ring) > 1 else {}
    return {question: lender.get(question, distinct[order[place - 1 if place else 1]]) for place, question in enumerate(order)}


def _drawn(seed: int, question: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{question}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
