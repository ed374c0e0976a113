"""The control of another problem's reference: whose each problem gets."""

import random
from collections import Counter

import pytest

from megatron_atesd.data.reveal import split_reference
from megatron_atesd.data.shuffled import ShuffledReferences
from megatron_atesd.data.sources.chain import chain_splits
from megatron_atesd.errors import DataError
from megatron_atesd.records import Problem

SPLITS = chain_splits({"train": 60, "probe": 20}, seed=1)


def lenders(seed: int, *files: list[Problem]) -> dict[str, str]:
    shuffled = ShuffledReferences(seed, *files)
    return {problem.id: shuffled.of(problem).id for problems in files for problem in problems}


def worked(id: str, question: str, lines: int) -> Problem:
    return Problem(id, question, "\n\n".join(f"step {i}" for i in range(lines)) + "\n\n\\boxed{1}", "1")


def test_no_problem_keeps_its_own_and_each_is_lent_once() -> None:
    found = lenders(1, SPLITS["train"])
    assert all(problem != lender for problem, lender in found.items())
    assert sorted(found.values()) == sorted(found)


def test_a_reference_has_as_many_segments_as_the_one_that_it_replaces() -> None:
    shuffled = ShuffledReferences(1, SPLITS["train"])
    pairs = [(split_reference(problem), split_reference(shuffled.of(problem))) for problem in SPLITS["train"]]
    assert all(len(own.segments) == len(other.segments) for own, other in pairs)
    assert len({len(own.segments) for own, _ in pairs}) == 5


def test_each_file_keeps_to_itself() -> None:
    found = lenders(1, SPLITS["train"], SPLITS["probe"])
    assert Counter((problem.split("-")[1], lender.split("-")[1]) for problem, lender in found.items()) == {
        ("train", "train"): 60,
        ("probe", "probe"): 20,
    }


def test_seeds_differ_and_the_order_of_problems_does_not_matter() -> None:
    problems = list(SPLITS["train"])
    first = lenders(1, problems)
    random.Random(0).shuffle(problems)
    assert lenders(1, problems) == first
    assert lenders(2, problems) != first


def test_the_same_question_twice_is_one_problem() -> None:
    twice = [worked("a", "one?", 2), worked("b", "one? ", 2), worked("c", "two?", 2)]
    assert lenders(1, twice)["a"] == lenders(1, twice)["b"] == "c"


def test_a_problem_alone_with_its_number_of_segments_borrows_from_the_next_shorter_one() -> None:
    found = lenders(1, [worked("two", "2?", 2), worked("three", "3?", 3), worked("four", "4?", 4)])
    assert found == {"two": "three", "three": "two", "four": "three"}


def test_a_file_with_one_problem_is_refused() -> None:
    with pytest.raises(DataError, match=r"exposure\.reference shuffled needs two different problems in a file, but that of problem 'a'"):
        ShuffledReferences(1, SPLITS["train"], [worked("a", "one?", 2), worked("b", "one?", 2)])
