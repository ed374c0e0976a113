"""The chain task: right solutions, disjoint splits, even difficulties."""

from collections import Counter

import pytest

from megatron_atesd.data.boxes import last_boxed
from megatron_atesd.data.problems import check_disjoint
from megatron_atesd.data.reveal import split_reference
from megatron_atesd.data.sources.chain import Chain, chain_problem, chain_splits
from megatron_atesd.errors import DataError

SPLITS = chain_splits({"train": 500, "probe": 64, "test": 210}, seed=1)


def test_a_chain_is_worked_from_left_to_right_modulo_23() -> None:
    chain = Chain(15, ("+3", "-3", "+4", "*4", "-4", "*3"))
    solved = chain_problem(chain, chain.values(), "a")
    assert solved.problem == "15+3-3+4*4-4*3"
    assert solved.solution == "15+3=18\n18-3=15\n15+4=19\n19*4=7\n7-4=3\n3*3=9\n\\boxed{9}"
    assert (solved.answer, solved.metadata) == ("9", {"difficulty": 6})


def test_a_negative_result_wraps_around() -> None:
    assert Chain(1, ("-3", "+2")).values() == [21, 0]


def test_every_step_of_every_solution_is_true() -> None:
    for problem in SPLITS["train"]:
        *steps, box = problem.solution.split("\n")
        for step, following in zip(steps, [*steps[1:], box], strict=True):
            left, right = step.split("=")
            assert eval(left) % 23 == int(right)
            assert following.startswith(right) or following == f"\\boxed{{{right}}}"


def test_the_answer_is_the_boxed_value() -> None:
    assert all(last_boxed(p.solution) == p.answer for p in SPLITS["test"])


def test_every_operation_is_one_segment() -> None:
    assert all(len(split_reference(p).segments) == p.metadata["difficulty"] for p in SPLITS["test"])


def test_the_splits_share_no_problem_and_repeat_none() -> None:
    check_disjoint(SPLITS)
    texts = [p.problem for split in SPLITS.values() for p in split]
    assert len(set(texts)) == len(texts) == 774


@pytest.mark.parametrize("name", ["train", "probe", "test"])
def test_difficulties_are_spread_evenly(name: str) -> None:
    counts = Counter(p.metadata["difficulty"] for p in SPLITS[name])
    assert set(counts) == {2, 3, 4, 5, 6}
    assert max(counts.values()) - min(counts.values()) <= 1


def test_when_the_short_chains_run_out_longer_ones_take_their_place() -> None:
    splits = chain_splits({"train": 20_000, "test": 210}, seed=1)
    counts = Counter(p.metadata["difficulty"] for split in splits.values() for p in split)
    assert counts[2] == 23 * 12**2
    assert [len(split) for split in splits.values()] == [20_000, 210]
    assert Counter(p.metadata["difficulty"] for p in splits["test"])[2] == 42


def test_a_seed_is_a_set_of_problems() -> None:
    sizes = {"train": 50, "test": 10}
    assert chain_splits(sizes, seed=1) == chain_splits(sizes, seed=1)
    assert chain_splits(sizes, seed=1) != chain_splits(sizes, seed=2)


def test_more_chains_than_exist_are_refused() -> None:
    with pytest.raises(DataError, match=r"100000000 chains asked for, but only \d+ exist"):
        chain_splits({"train": 100_000_000}, seed=1)
