"""A response that repeats itself up to the cut is told from one that was merely cut."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_atesd.records import Problem, Rollout
from megatron_atesd.rollout.loops import REPEATS, SHORTEST, is_loop
from megatron_atesd.train.metrics import ends_in_loop


def slowly(ids: Sequence[int]) -> bool:
    """Each period and each tail, one after the other."""
    lengths = {period: max(REPEATS * period, SHORTEST) for period in range(1, len(ids) + 1)}
    fitting = ((period, ids[len(ids) - length :]) for period, length in lengths.items() if length <= len(ids))
    return any(all(a == b for a, b in zip(tail, tail[period:], strict=False)) for period, tail in fitting)


@given(start=st.lists(st.integers(0, 2), max_size=20), unit=st.lists(st.integers(0, 2), min_size=1, max_size=9), length=st.integers(0, 40))
@settings(max_examples=300)
def test_it_is_the_slow_definition(start: list[int], unit: list[int], length: int) -> None:
    ids = start + (unit * 40)[:length]
    assert is_loop(ids) == slowly(ids)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([7] * 16, True),
        ([7] * 15, False),  # dots and digits come in such runs
        ([1, 2, 3] * 6, True),
        ([9, 9, *[1, 2, 3] * 5, 1], True),  # 16 tokens of period 3, the last amid it
        ([9, 9, *[1, 2, 3] * 5], False),
        (list(range(10)) * 3, True),
        (list(range(10)) * 3 + [99], False),  # the loop was left before the cut
        (list(range(10)) * 2 + list(range(9)), False),  # one token less than three times
        ([], False),
    ],
)
def test_loops_by_hand(ids: list[int], expected: bool) -> None:
    assert is_loop(ids) == expected


@pytest.mark.parametrize(("truncated", "expected"), [(True, True), (False, False)])
def test_only_a_cut_response_ends_in_a_loop(truncated: bool, expected: bool) -> None:
    assert ends_in_loop(Rollout(Problem("1", "", "", ""), (), (7,) * 20, truncated)) is expected


def operations(ids: Sequence[int]) -> int:
    """Comparisons of tokens that the answer took."""

    class Counted(int):
        count = 0

        def __eq__(self, other: object) -> bool:
            Counted.count += 1
            return int(self) == other

        __hash__ = int.__hash__

    is_loop([Counted(i) for i in ids])
    return Counted.count


@pytest.mark.parametrize("unit", [[0] * 4000 + [1], [0, 1], list(range(4001))], ids=["two runs", "two tokens", "no repetition"])
def test_the_longest_responses_take_a_few_comparisons_a_token(unit: list[int]) -> None:
    assert operations([*(unit * 20000)[:38911], 2]) <= 3 * 38912
