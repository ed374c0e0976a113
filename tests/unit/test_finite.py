"""Numbers that are not finite: weights are refused by name, a broken probe ends the run, skipped updates are counted and kept."""

import json
import math
from pathlib import Path

import pytest
import torch

from megatron_atesd.errors import CheckpointError, TrainingError
from megatron_atesd.records import Problem, Rollout
from megatron_atesd.train.finite import FILES, Skipped, check_probe, check_weights

ROLLOUT = Rollout(Problem("p1", "1 + 1?", "2", "2"), (5, 6), (7, 8, 9), True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name(value: float) -> None:
    weights = [("good", torch.ones(3)), ("bad", torch.tensor([1.0, value]))]
    with pytest.raises(CheckpointError, match="model: bad holds NaN or infinite values"):
        check_weights(weights, Path("model"))


def test_a_broken_probe_ends_the_run_with_its_name() -> None:
    with pytest.raises(TrainingError, match="the NLL is nan after 7 updates"):
        check_probe({"the KL": None, "the NLL": math.nan}, 7)


def test_only_updates_in_a_row_are_too_many(tmp_path: Path) -> None:
    skipped = Skipped(tmp_path, limit=2)
    seen = []
    for bad in (True, False, True, True):
        skipped.count(bad)
        seen.append(skipped.too_many)
    assert seen == [False, False, False, True]


def test_a_kept_example_has_its_ids_and_null_for_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    Skipped(tmp_path / "new", limit=1).save(3, 1, [0.25, 0.25], [ROLLOUT, ROLLOUT], [0.5, math.nan])
    lines = [json.loads(line) for line in (tmp_path / "new" / "update_3_rank_1.jsonl").read_text().splitlines()]
    assert lines[0] == {"problem": "p1", "alpha": 0.25, "loss": 0.5, "truncated": True, "prompt_ids": [5, 6], "response_ids": [7, 8, 9]}
    assert lines[1]["loss"] is None


def test_only_the_newest_batches_of_a_rank_are_kept(tmp_path: Path) -> None:
    skipped = Skipped(tmp_path, limit=1)
    for update in range(1, FILES + 3):
        skipped.save(update, 0, [0.0], [ROLLOUT], [1.0])
    skipped.save(1, 1, [0.0], [ROLLOUT], [1.0])
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {f"update_{update}_rank_0.jsonl" for update in range(3, FILES + 3)} | {"update_1_rank_1.jsonl"}


def test_a_batch_that_cannot_be_kept_does_not_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "skipped").touch()
    Skipped(tmp_path / "skipped", limit=2).save(3, 0, [0.25], [ROLLOUT], [0.5])
    assert "warning: the batch of skipped update 3 is not kept" in capsys.readouterr().err


@pytest.mark.parametrize(("left", "further"), [(4, "the same command goes on with the next problems"), (0, "no update is left")])
def test_the_end_after_too_many_says_what_comes_next(tmp_path: Path, left: int, further: str) -> None:
    assert further in str(Skipped(tmp_path, limit=2).error(tmp_path / "step_6", left))
