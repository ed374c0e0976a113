"""How an evaluation's responses are shared out over batches of generation."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_atesd.config import RolloutConfig
from megatron_atesd.evaluate import sample
from megatron_atesd.rollout.training_engine import Response


@pytest.mark.parametrize(("ranks", "sizes"), [(1, [4, 2, 4, 2]), (2, [6, 6])])
def test_each_context_parallel_rank_generates_a_whole_batch_at_once(ranks: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy and sampled responses to six problems, rollout.batch 4."""
    asked: list[int] = []

    class Engine:
        def generate(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: RolloutConfig) -> list[Response]:
            asked.append(len(prompts))
            return [Response((1,), False)] * len(prompts)

    for name, stand_in in {"context_place": lambda: (0, ranks), "data_parallel_place": lambda: (0, 1)}.items():
        monkeypatch.setattr(sample, name, stand_in)
    monkeypatch.setattr(sample, "gathered", lambda answered, group: [answered])
    monkeypatch.setattr(sample.parallel_state, "get_data_parallel_group", lambda: None)
    renderer: Any = SimpleNamespace(stop_ids=[0], id_limit=None, decode=str)
    problems: Any = [SimpleNamespace(id=str(i)) for i in range(6)]
    sample.answer_problems(Engine(), renderer, problems, [[1]] * 6, 1, RolloutConfig(batch=4), 1, lambda *_: None)
    assert asked == sizes
