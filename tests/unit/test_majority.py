"""Majority vote: parties by meaning, ties by lot."""

import itertools
import random
from collections.abc import Sequence

import numpy as np
import pytest

from megatron_atesd.evaluate.grading import Grader
from megatron_atesd.evaluate.majority import Pair, majority_values


def boxed(answer: str) -> str:
    return f"so \\boxed{{{answer}}}" if answer else "no idea"


def value(answers: str, gold: str = "1", same: str = "") -> float:
    """Of one problem whose answers are letters and digits, . for none; those in `same` mean the same."""
    texts = [boxed(a.strip(".")) for a in answers]

    def equal(pairs: Sequence[Pair]) -> list[bool]:
        assert all(one != other for one, other in pairs)
        return [one in same and other in same for one, other in pairs]

    return float(majority_values([texts], [[a == gold for a in answers]], equal)[0])


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ("111222233", 0.0),
        ("111122233", 1.0),
        ("1112223", 1 / 2),
        ("11223344", 1 / 4),
        ("1....", 1.0),  # a response without an answer does not vote
        (".....", 0.0),
        ("22223", 0.0),
        ("1", 1.0),
    ],
)
def test_votes_by_hand(answers: str, expected: float) -> None:
    assert value(answers) == pytest.approx(expected)


def test_answers_that_mean_the_same_vote_together() -> None:
    assert value("111ab22") == 1.0
    assert value("111abc2") == 1.0
    assert value("111abc2", same="abc") == 1 / 2
    assert value("111abc2", same="abc2") == 0.0


def test_a_tie_counts_as_often_as_a_draw_by_lot_is_right() -> None:
    rng = random.Random(0)
    for answers in ("1122", "112233", "1212334"):
        parties = [[a for a in answers if a == party] for party in sorted(set(answers))]
        most = max(map(len, parties))
        drawn = [rng.choice([party[0] for party in parties if len(party) == most]) == "1" for _ in range(4000)]
        assert value(answers) == pytest.approx(np.mean(drawn), abs=0.03)


def test_only_what_can_change_the_outcome_is_compared() -> None:
    asked: list[Pair] = []

    def remember(pairs: Sequence[Pair]) -> list[bool]:
        asked.extend(pairs)
        return [False] * len(pairs)

    rows = ["11123", "2345", "12233"]  # won whatever 2 and 3 mean; lost; open
    majority_values([[boxed(a) for a in row] for row in rows], [[a == "1" for a in row] for row in rows], remember)
    assert asked == [("2", "3")]


def test_the_grader_says_what_means_the_same() -> None:
    with Grader(1, 5.0) as grader:
        texts = [[boxed(a) for a in (r"\frac{1}{2}", "0.5", r"\frac{\sqrt{4}}{4}", "7", "7.0", "3")]]
        assert majority_values(texts, [[False, False, False, True, True, False]], grader.same) == [0.0]
        assert majority_values(texts, [[False, False, False, True, True, True]], grader.same) == [0.5]


def test_pairs_that_take_too_long_are_no_faults_of_a_response() -> None:
    with Grader(1, 5.0) as grader:
        grader._verdicts = lambda pairs: dict.fromkeys(pairs, "timeout")  # type: ignore[method-assign]
        assert grader.same([("a", "b")]) == [False]
        assert grader.timeouts == 0


def test_parties_are_those_of_the_slow_definition() -> None:
    """With an equality that is one (letters by their case), the parties are its classes."""
    for answers in itertools.product("1aAbB", repeat=5):
        counts = {party: sum(a.lower() == party for a in answers) for party in "1ab"}
        most = max(counts.values())
        winners = [party for party, count in counts.items() if count == most]
        expected = 1 / len(winners) if "1" in winners else 0.0
        texts, right = [boxed(a) for a in answers], [a == "1" for a in answers]
        found = majority_values([texts], [right], lambda pairs: [one.lower() == other.lower() for one, other in pairs])
        assert found == pytest.approx([expected]), answers
