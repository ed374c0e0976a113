"""The chain task: right solutions in every style of reference, disjoint splits, even difficulties."""

import re
from collections import Counter
from typing import get_args

import pytest

from megatron_atesd.data.boxes import last_boxed
from megatron_atesd.data.problems import check_disjoint
from megatron_atesd.data.reveal import split_reference
from megatron_atesd.data.sources.chain import Chain, chain_problem, chain_splits
from megatron_atesd.data.sources.chain_references import References
from megatron_atesd.errors import DataError
from megatron_atesd.records import Problem

STYLES = get_args(References)
SIZES = {"train": 500, "probe": 64, "test": 210}
SPLITS = chain_splits(SIZES, seed=1)
BY_STYLE = {style: chain_splits(SIZES, seed=1, references=style) for style in STYLES}
LATE = {2: {"11"}, 3: {"111"}, 4: {"112"}, 5: {"1112"}, 6: {"1122"}}


def operations_by_line(problem: Problem) -> str:
    """`1122` for two lines of one operation and two of two, read off the text of the solution."""
    lines = problem.solution.split("\n")[:-1]
    return "".join(str(len(re.findall(r"[-+*]", line))) for line in lines)


def seen_by_difficulty(style: str) -> dict[int, set[str]]:
    seen: dict[int, set[str]] = {}
    for problem in BY_STYLE[style]["train"]:
        seen.setdefault(problem.metadata["difficulty"], set()).add(operations_by_line(problem))
    return seen


def test_a_chain_is_worked_from_left_to_right_modulo_23() -> None:
    chain = Chain(15, ("+3", "-3", "+4", "*4", "-4", "*3"))
    solved = chain_problem(chain, chain.lines((1,) * 6), "a")
    assert solved.problem == "15+3-3+4*4-4*3"
    assert solved.solution == "15+3=18\n18-3=15\n15+4=19\n19*4=7\n7-4=3\n3*3=9\n\\boxed{9}"
    assert (solved.answer, solved.metadata) == ("9", {"difficulty": 6})


def test_a_terse_line_leaves_the_intermediate_result_out_and_the_difficulty_alone() -> None:
    chain = Chain(15, ("+3", "-3", "+4", "*4"))
    solved = chain_problem(chain, chain.lines((1, 2, 1)), "a")
    assert solved.solution == "15+3=18\n18-3+4=19\n19*4=7\n\\boxed{7}"
    assert (solved.answer, solved.metadata) == ("7", {"difficulty": 4})


def test_a_negative_result_wraps_around() -> None:
    assert [line.result for line in Chain(1, ("-3", "+2")).lines((1, 1))] == [21, 0]


@pytest.mark.parametrize("style", STYLES)
def test_every_line_of_every_solution_is_true(style: str) -> None:
    for problem in BY_STYLE[style]["train"]:
        *lines, box = problem.solution.split("\n")
        operations = ""
        for line, following in zip(lines, [*lines[1:], box], strict=True):
            start, applied, right = re.fullmatch(r"(\d+)((?:[-+*]\d)+)=(\d+)", line).groups()  # type: ignore[union-attr]
            value = int(start)
            for operation in re.findall(r"[-+*]\d", applied):  # from left to right: python's own precedence is another
                value = eval(f"({value}){operation}") % 23
            assert value == int(right)
            assert re.match(rf"{right}(?!\d)", following) or following == f"\\boxed{{{right}}}"
            operations += applied
        assert problem.problem == re.match(r"\d+", problem.solution)[0] + operations  # type: ignore[index]


def test_the_problems_and_answers_of_a_seed_are_the_same_for_all_references() -> None:
    for split in SIZES:
        columns = [[(p.id, p.problem, p.answer, p.metadata) for p in BY_STYLE[style][split]] for style in STYLES]
        assert columns == [columns[0]] * len(STYLES)


def test_references_are_one_operation_a_line_unless_asked_otherwise() -> None:
    assert BY_STYLE["det"] == SPLITS
    assert seen_by_difficulty("det") == {n: {"1" * n} for n in range(2, 7)}


def test_late_references_are_terse_at_the_end_of_long_chains() -> None:
    assert seen_by_difficulty("late") == LATE


def test_lateh_references_differ_from_late_ones_for_four_operations_alone() -> None:
    assert seen_by_difficulty("lateh") == LATE | {4: {"1111"}}


def test_random_references_write_every_mix_of_lines_from_four_operations_on() -> None:
    seen = seen_by_difficulty("rand")
    assert (seen[2], seen[3], seen[4]) == ({"11"}, {"111"}, {"1111", "112", "121", "211", "22"})
    assert all(set("".join(seen[n])) == {"1", "2"} for n in (5, 6))


def test_half_of_the_random_references_begin_with_a_terse_line() -> None:
    problems = chain_splits({"train": 5000}, seed=1, references="rand")["train"]
    first = [operations_by_line(p)[0] for p in problems if p.metadata["difficulty"] >= 4]
    assert first.count("2") / len(first) == pytest.approx(0.5, abs=0.03)


def test_how_a_random_reference_is_written_depends_on_seed_and_chain_alone() -> None:
    def solutions(size: int) -> dict[str, str]:
        return {p.problem: p.solution for p in chain_splits({"train": size}, seed=2, references="rand")["train"]}

    small, large = solutions(50), solutions(20_000)
    shared = small.keys() & large.keys()
    assert shared
    assert all(small[text] == large[text] for text in shared)


def test_the_answer_is_the_boxed_value() -> None:
    assert all(last_boxed(p.solution) == p.answer for p in SPLITS["test"])


@pytest.mark.parametrize("style", STYLES)
def test_every_line_is_one_segment(style: str) -> None:
    assert all(len(split_reference(p).segments) == len(operations_by_line(p)) for p in BY_STYLE[style]["test"])


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
