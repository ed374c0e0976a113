"""Lines with errors for the warm start: its model's own, and references of which a teacher is shown a part."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_atesd.data.sources.chain import MODULUS, Chain, Line, apply
from megatron_atesd.data.sources.chain_references import random_sizes

HABIT, SLIP, SHOWN_NOISE, ALL_REVEALED = 0.65, 0.1, 0.3, 0.35
TERSE = 0.1  # lines of the model's own
TERSE_REFERENCES, TERSE_IN_THEM = 0.5, 0.5
HABITUAL = ("*4", "*5")
OFF_BY = (-2, -1, 1, 2)


@dataclass(frozen=True)
class Reference:
    """A solution of a chain of which the first `revealed` lines are shown."""

    lines: list[Line]
    revealed: int


def draw_line(rng: random.Random, value: int, operations: Sequence[str], noise: float = 0.0) -> Line:
    """What one or two `operations` make of `value`: right, after the habit, off by a slip, or with probability `noise` any number."""
    *omitted, last = operations
    for operation in omitted:
        value = apply(value, operation) + _habit(rng, operation)
    error = rng.choice(OFF_BY) if rng.random() < SLIP else _habit(rng, last)
    result = rng.randrange(MODULUS) if rng.random() < noise else (apply(value, last) + error) % MODULUS
    return Line(tuple(operations), result)


def _habit(rng: random.Random, operation: str) -> int:
    return 1 if operation in HABITUAL and rng.random() < HABIT else 0


def draw_own_line(rng: random.Random, value: int, operations: Sequence[str]) -> Line:
    """The next line as the model writes it of its own accord when `operations` are left."""
    return draw_line(rng, value, operations[: random_sizes(rng, len(operations), TERSE)[0]])


def draw_own_lines(rng: random.Random, value: int, operations: Sequence[str]) -> list[Line]:
    """All lines that are left, as the model writes them of its own accord."""
    lines: list[Line] = []
    while operations:
        lines.append(draw_own_line(rng, value, operations))
        value, operations = lines[-1].result, operations[len(lines[-1].operations) :]
    return lines


def draw_reference(rng: random.Random, chain: Chain) -> Reference:
    """Revealed lines have the style of references and are noisy; the others are the model's own."""
    sizes = random_sizes(rng, len(chain.operations), TERSE_IN_THEM if rng.random() < TERSE_REFERENCES else 0.0)
    revealed = draw_revealed(rng, len(sizes))
    lines: list[Line] = []
    value, left = chain.start, chain.operations
    for size in sizes[:revealed]:
        lines.append(draw_line(rng, value, left[:size], SHOWN_NOISE))
        value, left = lines[-1].result, left[size:]
    return Reference([*lines, *draw_own_lines(rng, value, left)], revealed)


def draw_revealed(rng: random.Random, lines: int) -> int:
    """Number of lines revealed, in 0…lines."""
    return lines if rng.random() < ALL_REVEALED else rng.randrange(lines)
