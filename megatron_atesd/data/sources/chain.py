"""Chains of arithmetic modulo 23: `15+3-3*4`, worked from left to right, one operation a line or two.

Small enough for a model of a few hundred thousand parameters, long enough that showing more or less of a solution matters.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import chain as concatenate
from itertools import zip_longest

from megatron_atesd.data.sources.chain_references import References, reference_sizes
from megatron_atesd.errors import DataError
from megatron_atesd.records import Problem

MODULUS = 23
OPERATIONS = tuple(f"{sign}{operand}" for sign in "+-*" for operand in range(2, 6))
DIFFICULTIES = range(2, 7)  # operations in a chain


@dataclass(frozen=True)
class Chain:
    """A start in 0…22 and the operations applied to it in turn, each a sign and an operand such as `*4`."""

    start: int
    operations: tuple[str, ...]

    @property
    def text(self) -> str:
        return f"{self.start}{''.join(self.operations)}"

    def lines(self, sizes: Sequence[int]) -> list["Line"]:
        """The right lines; `sizes` are the operations in each, in all those of the chain."""
        lines: list[Line] = []
        value, done = self.start, 0
        for size in sizes:
            operations = self.operations[done : done + size]
            value, done = reduce(apply, operations, value), done + size
            lines.append(Line(operations, value))
        return lines


@dataclass(frozen=True)
class Line:
    """A line of a solution: the operations that it applies to the result before it, one or two, and its own result, right or wrong."""

    operations: tuple[str, ...]
    result: int


def apply(value: int, operation: str) -> int:
    """`value` after one operation such as `*4`, modulo 23."""
    operand = int(operation[1:])
    results = {"+": value + operand, "-": value - operand, "*": value * operand}
    return results[operation[0]] % MODULUS


def line_texts(start: int, lines: Sequence[Line]) -> list[str]:
    """One `15+3=18` or `15+3*2=13` a line: every line goes on from the result before it."""
    befores = [start, *(line.result for line in lines)]
    return [f"{before}{''.join(line.operations)}={line.result}" for before, line in zip(befores, lines, strict=False)]


def chain_problem(chain: Chain, lines: Sequence[Line], id: str) -> Problem:
    """The problem whose reference solution is `lines` and the last result boxed; its difficulty is the number of operations."""
    answer = str(lines[-1].result)
    solution = "\n".join([*line_texts(chain.start, lines), f"\\boxed{{{answer}}}"])
    return Problem(id, chain.text, solution, answer, {"difficulty": len(chain.operations)})


def random_chain(rng: random.Random) -> Chain:
    """A chain of uniform difficulty."""
    return Chain(rng.randrange(MODULUS), tuple(rng.choices(OPERATIONS, k=rng.choice(DIFFICULTIES))))


def chain_splits(sizes: dict[str, int], seed: int, references: References = "det") -> dict[str, list[Problem]]:
    """Splits of the given sizes without a problem in common or twice, each as evenly spread over the difficulties as can be.

    A seed is a set of problems, the same for all `references`. Raises DataError when more problems are asked for than exist.
    """
    rng = random.Random(seed)
    by_difficulty = [_sample(rng, n, quota) for n, quota in _quotas(sum(sizes.values())).items()]
    dealt = _interleaved(by_difficulty)
    # Small splits first: they get their even share before the short chains run out.
    order = sorted(sizes, key=lambda name: sizes[name])
    splits = {name: [next(dealt) for _ in range(sizes[name])] for name in order}
    return {name: [_solved(c, f"chain-{name}-{i}", references, seed) for i, c in enumerate(splits[name], 1)] for name in sizes}


def _solved(chain: Chain, id: str, references: References, seed: int) -> Problem:
    # A generator for each chain: how one is written depends on no other.
    sizes = reference_sizes(references, len(chain.operations), random.Random(f"{seed}/{chain.text}"))
    return chain_problem(chain, chain.lines(sizes), id)


def _quotas(count: int) -> dict[int, int]:
    """How many chains of each difficulty make `count`, as equal as the number that exist allows."""
    quotas: dict[int, int] = {}
    for place, difficulty in enumerate(DIFFICULTIES):
        even = -(-(count - sum(quotas.values())) // (len(DIFFICULTIES) - place))
        quotas[difficulty] = min(even, _existing(difficulty))
    if sum(quotas.values()) < count:
        raise DataError(f"{count} chains asked for, but only {sum(quotas.values())} exist: ask for fewer")
    return quotas


def _existing(difficulty: int) -> int:
    return MODULUS * len(OPERATIONS) ** difficulty


def _sample(rng: random.Random, difficulty: int, quota: int) -> list[Chain]:
    """Distinct chains: every chain has a number, and the numbers are drawn without replacement."""
    return [_numbered(number, difficulty) for number in rng.sample(range(_existing(difficulty)), quota)]


def _numbered(number: int, difficulty: int) -> Chain:
    number, start = divmod(number, MODULUS)
    operations = []
    for _ in range(difficulty):
        number, operation = divmod(number, len(OPERATIONS))
        operations.append(OPERATIONS[operation])
    return Chain(start, tuple(operations))


def _interleaved(groups: list[list[Chain]]) -> Iterator[Chain]:
    """One of each group in turn, as long as they last."""
    return (chain for chain in concatenate.from_iterable(zip_longest(*groups)) if chain is not None)
