"""The order of problems: a function of the update number alone, the same for every data-parallel size."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_atesd.data.sampler import ProblemSampler
from megatron_atesd.errors import CheckpointError, ConfigError, DataError
from megatron_atesd.records import Problem


def problems(count: int, text: str = "p") -> list[Problem]:
    return [Problem(f"id{i}", f"{text}{i}", "s", "1") for i in range(count)]


def stream(sampler: ProblemSampler, updates: int) -> list[str]:
    return [p.id for update in range(updates) for p in sampler.batch_at(update)]


@given(size=st.integers(1, 12), batch=st.integers(1, 15), epochs=st.integers(1, 4))
def test_every_epoch_holds_every_problem_once(size: int, batch: int, epochs: int) -> None:
    ids = stream(ProblemSampler(problems(size), batch, seed=1), -(-size * epochs // batch))
    for epoch in range(epochs):
        assert Counter(ids[epoch * size : (epoch + 1) * size]) == Counter(p.id for p in problems(size))


@pytest.mark.parametrize("dp_size", [2, 3, 6])
def test_the_ranks_shares_in_order_are_the_whole_batch(dp_size: int) -> None:
    whole = ProblemSampler(problems(10), 6, seed=3)
    ranks = [ProblemSampler(problems(10), 6, 3, rank, dp_size) for rank in range(dp_size)]
    for update in range(7):
        assert [p for rank in ranks for p in rank.batch_at(update)] == whole.batch_at(update)


@pytest.mark.parametrize("dp_size", [1, 2, 3, 6])
def test_every_problem_of_the_stream_has_a_place_of_its_own(dp_size: int) -> None:
    ranks = [ProblemSampler(problems(4), 6, 3, rank, dp_size) for rank in range(dp_size)]
    places = [rank.place_at(update) + i for update in range(5) for rank in ranks for i in range(len(rank.batch_at(update)))]
    assert places == list(range(30))


def test_a_batch_does_not_depend_on_what_was_drawn_before() -> None:
    used = ProblemSampler(problems(10), 4, seed=3)
    stream(used, 50)
    assert used.batch_at(5) == ProblemSampler(problems(10), 4, seed=3).batch_at(5)


def test_seeds_and_epochs_differ_in_order() -> None:
    first = stream(ProblemSampler(problems(50), 50, seed=1), 2)
    assert first[:50] != first[50:]
    assert first[:50] != stream(ProblemSampler(problems(50), 50, seed=2), 1)


def test_the_order_is_the_same_in_every_process() -> None:
    assert stream(ProblemSampler(problems(6), 6, seed=1), 1) == ["id2", "id1", "id0", "id4", "id3", "id5"]


def test_resume_with_the_same_data_at_another_dp_size_is_accepted() -> None:
    state = ProblemSampler(problems(10), 4, seed=3).state_dict()
    ProblemSampler(problems(10), 4, 3, dp_rank=1, dp_size=2).check(state)
    with pytest.raises(CheckpointError):
        ProblemSampler(problems(10), 4, 4, dp_rank=1, dp_size=2).check(state)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (ProblemSampler(problems(10, "q"), 4, 3), r"data\.train holds other problems"),
        (ProblemSampler(problems(10)[::-1], 4, 3), r"data\.train holds other problems"),
        (ProblemSampler(problems(10), 4, 4), r"run\.seed differs"),
        (ProblemSampler(problems(10), 2, 3), r"data\.batch differs"),
    ],
)
def test_resume_with_another_stream_is_refused(other: ProblemSampler, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        other.check(ProblemSampler(problems(10), 4, seed=3).state_dict())


def test_the_data_parallel_size_must_divide_the_batch() -> None:
    with pytest.raises(ConfigError, match=r"data\.batch is 4, but must be a positive multiple of the data-parallel size 3"):
        ProblemSampler(problems(10), 4, 1, 0, 3)


def test_no_problem_at_all_is_refused() -> None:
    with pytest.raises(DataError, match="at least one"):
        ProblemSampler([], 4, 1)
