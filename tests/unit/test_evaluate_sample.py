"""How an evaluation's responses are shared out over ranks, and what the engine is asked for."""

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_atesd.config import RolloutConfig
from megatron_atesd.evaluate import sample
from megatron_atesd.evaluate.responses import Answered, Key
from megatron_atesd.rollout.engine import Finished, Response
from megatron_atesd.rollout.sampling import sequence_seed

PROBLEMS: Any = [SimpleNamespace(id=f"p{i}") for i in range(6)]
PROMPTS = [(1,) * (i + 1) for i in range(6)]
RENDERER: Any = SimpleNamespace(decode=lambda ids: " ".join(map(str, ids)))


class Engine:
    """Remembers what it was asked for; a response is its seed's last digits and a stop token."""

    depends_on = frozenset({"seed"})

    def __init__(self) -> None:
        self.calls: list[tuple[list[tuple[int, ...]], list[int], RolloutConfig]] = []

    def refresh(self) -> None: ...

    def generate(
        self, prompts: Sequence[Any], seeds: Sequence[int], sampling: RolloutConfig, finished: Finished | None = None
    ) -> list[Response]:
        self.calls.append((list(prompts), list(seeds), sampling))
        made = [Response((seed % 97, 0), False, (0.0, 0.0), 1) for seed in seeds]
        assert finished is not None
        for place in reversed(range(len(made))):  # in no order that is asked for
            finished(place, made[place])
        return made


def answered(there: dict[Key, int], rank: int, ranks: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Engine, list[Answered]]:
    monkeypatch.setattr(sample, "data_parallel_place", lambda: (rank, ranks))
    engine, made = Engine(), list[Answered]()
    sample.answer_problems(engine, RENDERER, PROBLEMS, PROMPTS, 3, RolloutConfig(), 5, there, made.append)  # pyright: ignore[reportArgumentType]
    return engine, made


def test_a_rank_asks_for_all_of_a_kind_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = answered({}, 0, 1, monkeypatch)
    assert [(len(prompts), sampling.temperature) for prompts, _, sampling in engine.calls] == [(6, 0.0), (18, RolloutConfig().temperature)]


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_the_ranks_together_make_what_is_missing_once_and_with_its_own_seed(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {(0, -1): 9, (2, 1): 4, (2, 2): 30}
    made = [a for rank in range(ranks) for a in answered(there, rank, ranks, monkeypatch)[1]]
    keys = sorted(a.key for a in made)
    assert keys == sorted({(p, s) for p in range(6) for s in range(-1, 3)} - there.keys())
    assert all(a.text == str(sequence_seed("evaluate", 5, f"p{a.problem}", a.sample) % 97) for a in made)


def test_only_a_cut_response_that_repeats_itself_is_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    again, mixed = (1, 2, 3) * 20, tuple(range(60))
    made = [Response(ids, cut, (0.0,) * 60, 60) for ids, cut in ((again, True), (again, False), (mixed, True))]
    monkeypatch.setattr(Engine, "generate", lambda self, prompts, seeds, sampling, finished: [*map(finished, range(3), made)])
    there = {(p, s): 60 for p in range(6) for s in range(-1, 3) if p or s < 0}  # but those of the first problem
    assert [a.loop for a in answered(there, 0, 1, monkeypatch)[1]] == [True, False, False]


def test_a_rank_without_a_share_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {(p, s): 4 for p in range(6) for s in range(-1, 3)}
    assert not answered(there, 0, 1, monkeypatch)[0].calls
    del there[5, 2]
    assert [len(answered(there, rank, 2, monkeypatch)[0].calls) for rank in range(2)] == [1, 0]


def test_a_problem_is_expected_to_take_as_long_as_its_responses_did() -> None:
    there = {(0, -1): 100, (0, 1): 300, (2, 0): 50}
    assert sample.expected_costs([10, 20, 30], there, 1000) == [10 + 200, 20 + 150, 30 + 50]
    assert sample.expected_costs([10, 20], {}, 1000) == [510, 520]


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_no_rank_has_more_than_one_response_beyond_another(ranks: int) -> None:
    draw = random.Random(ranks)
    costs, loads = [draw.expovariate(1) for _ in range(200)], [0.0] * ranks
    shares = sample.share_out(costs, loads)
    assert sorted(place for share in shares for place in share) == list(range(200))
    assert loads == pytest.approx([sum(costs[place] for place in share) for share in shares])
    assert max(loads) - min(loads) <= max(costs)


def test_what_a_rank_has_of_one_kind_counts_for_the_next() -> None:
    loads = [0.0, 0.0]
    assert sample.share_out([5.0], loads) == [[0], []]
    assert sample.share_out([2.0, 2.0, 1.0], loads) == [[], [0, 1, 2]]


def test_a_rank_begins_with_the_longest() -> None:
    assert sample.share_out([1.0, 3.0, 2.0], [0.0]) == [[1, 2, 0]]


def test_the_samples_of_a_problem_go_to_different_ranks() -> None:
    costs = [400.0] * 4 + [200.0] * 4 + [201.0] * 4
    shares = sample.share_out(costs, [0.0] * 4)
    assert all(sorted(place // 4 for place in share) == [0, 1, 2] for share in shares)
