"""Which evaluation problems the training file holds already: word for word, or n words in a row of them.

The n-grams of the evaluation problems are kept; the training file is read a line at a time.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megatron_atesd.data.overlap import Gram, grams, whole, words
from megatron_atesd.data.problems import stream_problems
from megatron_atesd.errors import DataError
from megatron_atesd.records import Problem

Part = Literal["problem", "solution"]
Level = Literal["copy", "most", "some", "none"]
_MOST = 0.5  # stock phrases of a competition are a smaller share of a problem


@dataclass(eq=False)
class Suspect:
    """One evaluation problem and what of it is in the training file.

    grams: number of its different n-grams (0: it is shorter than n words, so that only the whole text is compared).
    seen: those of its n-grams that training problems, and training solutions, hold.
    copies: lines of training problems with the same text.
    closest: (n-grams in common, line, id, part) of the training text that shares most of them.
    """

    id: str
    grams: int
    seen: dict[Part, set[Gram]] = field(default_factory=lambda: {"problem": set(), "solution": set()})
    copies: list[int] = field(default_factory=list)
    closest: tuple[int, int, str, Part] | None = None

    @property
    def share(self) -> float:
        """Share of its n-grams that the training file holds, 0 to 1; of a problem shorter than n words 1 for a copy, else 0."""
        return len(self.seen["problem"] | self.seen["solution"]) / self.grams if self.grams else float(bool(self.copies))

    @property
    def level(self) -> Level:
        """How much of it the training file holds: a copy; most (half of its n-grams and more), some, or none of its n-grams."""
        if self.copies:
            return "copy"
        return "most" if self.share >= _MOST else "some" if self.share else "none"

    def see(self, part: Part, found: set[Gram], line: int, id: str) -> None:
        """Take in the n-grams that one training text shares with it."""
        self.seen[part] |= found
        if self.closest is None or len(found) > self.closest[0]:
            self.closest = (len(found), line, id, part)


@dataclass(frozen=True)
class Overlap:
    """Of one training file with several evaluation files. evaluations: file name → its problems, in file order."""

    train: str
    train_problems: int
    ngram: int
    evaluations: dict[str, list[Suspect]]


def find_overlap(train: Path, evaluations: Sequence[Path], ngram: int) -> Overlap:
    """Compare problems and solutions of `train` with the problems of each evaluation file, by `ngram` words in a row.

    Raises DataError for a file that is no problem file.
    """
    files = {str(path): [problem for _, problem in _some(path)] for path in evaluations}
    index = _Index((problem for problems in files.values() for problem in problems), ngram)
    count = 0
    for line, problem in _some(train):
        index.compare(line, problem)
        count += 1
    rest = iter(index.suspects)
    return Overlap(str(train), count, ngram, {name: [next(rest) for _ in problems] for name, problems in files.items()})


def _some(path: Path) -> Iterator[tuple[int, Problem]]:
    """`stream_problems` of a file that must hold one."""
    number = 0
    for number, problem in stream_problems(path):
        yield number, problem
    if not number:
        raise DataError(f"{path}: no usable problem; expected JSON lines with `problem` and `solution`")


class _Index:
    """The evaluation problems by n-gram and by whole text."""

    def __init__(self, problems: Iterable[Problem], ngram: int) -> None:
        self.suspects: list[Suspect] = []
        self._ngram = ngram
        self._by_gram: dict[Gram, list[Suspect]] = {}
        self._by_text: dict[str, list[Suspect]] = {}
        for problem in problems:
            different = set(grams(words(problem.problem), ngram))
            suspect = Suspect(problem.id, len(different))
            self.suspects.append(suspect)
            self._by_text.setdefault(whole(problem.problem), []).append(suspect)
            for gram in different:
                self._by_gram.setdefault(gram, []).append(suspect)

    def compare(self, line: int, problem: Problem) -> None:
        """Take in one training problem."""
        for suspect in self._by_text.get(whole(problem.problem), ()):
            suspect.copies.append(line)
        texts: tuple[tuple[Part, str], ...] = (("problem", problem.problem), ("solution", problem.solution))
        for part, text in texts:
            shared = set(filter(self._by_gram.__contains__, grams(words(text), self._ngram)))
            for suspect in {suspect for gram in shared for suspect in self._by_gram[gram]}:
                suspect.see(part, {gram for gram in shared if suspect in self._by_gram[gram]}, line, problem.id)
