"""How the reference of a chain is written: how many operations each of its lines takes, one or two.

A line of two operations is *terse*: `5*4+3=0` for `5*4=20` and `20+3=0`. It skips a routine step, as worked solutions do, and a model
that works one operation at a time cannot compute it. Where terse lines are shown, more exposure is not simply better.

    det      every line one operation
    late     terse at the end of long chains: 1 1 2 · 1 1 1 2 · 1 1 2 2 for 4, 5 and 6 operations
    lateh    as late, but 4 operations are all written out
    rand     from 4 operations on, each line is terse with probability ½
"""

import random
from typing import Literal

References = Literal["det", "late", "lateh", "rand"]

_LATE = {4: (1, 1, 2), 5: (1, 1, 1, 2), 6: (1, 1, 2, 2)}
_FIXED: dict[str, dict[int, tuple[int, ...]]] = {"det": {}, "late": _LATE, "lateh": {n: sizes for n, sizes in _LATE.items() if n > 4}}
_RANDOM_FROM, _RANDOM_TERSE = 4, 0.5


def reference_sizes(references: References, operations: int, rng: random.Random) -> tuple[int, ...]:
    """Operations in each line, 1 or 2, of the reference of a chain of `operations`; only "rand" draws from `rng`."""
    if references == "rand":
        return random_sizes(rng, operations, _RANDOM_TERSE if operations >= _RANDOM_FROM else 0.0)
    return _FIXED[references].get(operations, (1,) * operations)


def random_sizes(rng: random.Random, operations: int, terse: float) -> tuple[int, ...]:
    """Operations in each line, 1 or 2: a line is terse with probability `terse` when two operations are left."""
    sizes: list[int] = []
    while (left := operations - sum(sizes)) > 0:
        sizes.append(2 if left > 1 and rng.random() < terse else 1)
    return tuple(sizes)
