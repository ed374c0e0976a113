"""Whether a response that was cut at the limit ended in a loop: the same tokens over and over."""

from collections.abc import Sequence

# Three times the same is a loop. Shorter tails than 16 tokens are not: digits, dots and spaces come in such runs.
REPEATS = 3
SHORTEST = 16


def is_loop(ids: Sequence[int]) -> bool:
    """Whether the last max(REPEATS · p, SHORTEST) tokens or more repeat with some period p ≥ 1; in linear time.

    The tail need not end with a whole period. ids: a response without a stop token; one that stopped by itself is no loop.
    """
    backwards = prefix_lengths(ids[::-1])
    return any(period + backwards[period] >= max(REPEATS * period, SHORTEST) for period in range(1, len(ids)))


def prefix_lengths(ids: Sequence[int]) -> list[int]:
    """For each place, how many tokens from there on equal those from the start on (the Z-function; 0 at place 0)."""
    lengths = [0] * len(ids)
    start = end = 0  # the match that reaches furthest: ids[start:end] equals the first end - start tokens
    for place in range(1, len(ids)):
        same = min(end - place, lengths[place - start]) if place < end else 0
        while place + same < len(ids) and ids[same] == ids[place + same]:
            same += 1
        if place + same > end:
            start, end = place, place + same
        lengths[place] = same
    return lengths
