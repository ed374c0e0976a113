"""Chains of arithmetic modulo 23: `15+3-3*4`, worked from left to right, one step a line.

Small enough for a model of a few hundred thousand parameters, long enough that showing more or less of a solution matters.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain as concatenate
from itertools import zip_longest

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

    def values(self) -> list[int]:
        """The right result after each operation."""
        results: list[int] = []
        for operation in self.operations:
            results.append(apply(results[-1] if results else self.start, operation))
        return results


def apply(value: int, operation: str) -> int:
    """`value` after one operation such as `*4`, modulo 23."""
    operand = int(operation[1:])
    results = {"+": value + operand, "-": value - operand, "*": value * operand}
    return results[operation[0]] % MODULUS


def step_texts(chain: Chain, values: Sequence[int]) -> list[str]:
    """One `15+3=18` a step, for any results, right or wrong: every step goes on from the result before it."""
    return [f"{before}{op}={after}" for before, op, after in zip([chain.start, *values], chain.operations, values, strict=False)]


def chain_problem(chain: Chain, values: Sequence[int], id: str) -> Problem:
    """The problem whose reference solution goes through `values` (one a step) and boxes the last."""
    solution = "\n".join([*step_texts(chain, values), f"\\boxed{{{values[-1]}}}"])
    return Problem(id, chain.text, solution, str(values[-1]), {"difficulty": len(chain.operations)})


def random_chain(rng: random.Random) -> Chain:
    """A chain of uniform difficulty."""
    return Chain(rng.randrange(MODULUS), tuple(rng.choices(OPERATIONS, k=rng.choice(DIFFICULTIES))))


def chain_splits(sizes: dict[str, int], seed: int) -> dict[str, list[Problem]]:
    """Splits of the given sizes without a problem in common or twice, each as evenly spread over the difficulties as can be.

    Raises DataError when more problems are asked for than exist.
    """
    rng = random.Random(seed)
    by_difficulty = [_sample(rng, n, quota) for n, quota in _quotas(sum(sizes.values())).items()]
    dealt = _interleaved(by_difficulty)
    # Small splits first: they get their even share before the short chains run out.
    order = sorted(sizes, key=lambda name: sizes[name])
    splits = {name: [next(dealt) for _ in range(sizes[name])] for name in order}
    return {name: [_solved(c, f"chain-{name}-{i}") for i, c in enumerate(splits[name], 1)] for name in sizes}


def _solved(chain: Chain, id: str) -> Problem:
    return chain_problem(chain, chain.values(), id)


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
