"""A run in which one rank's loss becomes NaN: the update is skipped, counted and kept for inspection, and too many in a row end the run."""

import json
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_atesd.config import load_config
from megatron_atesd.distill.fused import distill_loss
from megatron_atesd.distill.step import distill_step, example_losses
from megatron_atesd.errors import TrainingError
from megatron_atesd.faults.state import checkpoint_state, differences, metrics
from megatron_atesd.train import loop, student_step, training_run
from tests.support.launch import run_distributed
from tests.support.small_run import arguments, newest, save_inputs

pytestmark = pytest.mark.slow


@contextmanager
def nan_on_rank_1(updates: Collection[int]) -> Iterator[None]:
    """Every loss that rank 1 computes in these updates (counted from 1) is NaN."""
    now = 0
    train_step = loop.train_step

    def counting_step(run: Any, update: int, heartbeat: Any, tell: Any) -> Any:
        nonlocal now
        now = update + 1
        return train_step(run, update, heartbeat, tell)

    def loss_or_nan(*args: Any) -> Any:
        loss, statistics = distill_loss(*args)
        return loss * (math.nan if now in updates and dist.get_rank() == 1 else 1.0), statistics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", counting_step)
        patch.setattr(student_step, "distill_step", partial(distill_step, loss=loss_or_nan))
        patch.setattr(training_run, "example_losses", partial(example_losses, loss=loss_or_nan))
        yield


@dataclass(frozen=True)
class Runs:
    """One bad update (the second of four); then a run all whose updates after the first are bad, and the same run afterwards."""

    one_bad: Path
    all_bad: Path
    error: str
    newest_after_error: str


def train_with_faults(inputs: Path, folder: Path) -> Runs:
    """On two data-parallel ranks."""
    dist.init_process_group("gloo")
    one_bad, all_bad = folder / "one", folder / "all"
    overrides = ("--parallel.tensor=1", "--run.updates=4", "--run.max_skipped=2", "--checkpoint.every=1", "--monitor.tensorboard=false")
    with nan_on_rank_1([2]):
        loop.train(load_config(arguments(inputs, one_bad, *overrides)))
    with nan_on_rank_1([2, 3, 4]), pytest.raises(TrainingError) as error:
        loop.train(load_config(arguments(inputs, all_bad, *overrides, "--checkpoint.every=0")))
    parallel_state.destroy_model_parallel()  # as the end of the process would
    stopped_at = newest(all_bad)
    dist.barrier()
    loop.train(load_config(arguments(inputs, all_bad, *overrides)))
    return Runs(one_bad, all_bad, str(error.value), stopped_at)


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[Runs]:
    inputs = save_inputs(tmp_path_factory.mktemp("inputs"))
    return run_distributed(train_with_faults, 2, inputs, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def runs(by_rank: list[Runs]) -> Runs:
    return by_rank[0]


def state(run_dir: Path, update: int) -> dict[str, Any]:
    return checkpoint_state(run_dir / "checkpoints" / f"step_{update}")


def batch(run_dir: Path, update: int, rank: int) -> list[dict[str, Any]]:
    lines = (run_dir / "skipped" / f"update_{update}_rank_{rank}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_skipped_update_is_counted_in_the_metrics(runs: Runs) -> None:
    assert [line["optim/skipped"] for line in metrics(runs.one_bad)] == [0.0, 1.0, 0.0, 0.0]


def test_a_skipped_update_leaves_every_tensor_as_it_was(runs: Runs) -> None:
    """Student, teacher and optimizer."""
    before, after = (state(runs.one_bad, update) for update in (1, 2))
    tensors = [name for name in before if name.startswith("/tensors/")]
    assert {name.split("/")[2].split(".")[0] for name in tensors} == {"model", "teacher", "optimizer"}
    assert set(tensors) & set(differences(before, after)) == set()


def test_the_updates_after_it_train_again(runs: Runs) -> None:
    before, after = (state(runs.one_bad, update) for update in (2, 4))
    weights = [name for name in before if name.startswith("/tensors/model.") and name.endswith("weight")]
    assert set(weights) <= set(differences(before, after))


def test_the_controller_does_not_learn_from_it(runs: Runs) -> None:
    """With a look-ahead of 2, updates 2 to 4 end no decision's look-ahead that has seen only good updates."""
    last = state(runs.one_bad, 4)
    assert last["/plain/run/exposure/policy_updates"] == 0
    assert [name for name, value in last.items() if name.startswith("/plain/run/exposure/signals/2")] == []


def test_its_batch_is_kept_with_the_rank_whose_loss_it_was(runs: Runs) -> None:
    assert [line["loss"] is None for line in batch(runs.one_bad, 2, 1)] == [True] * 4
    assert all(line["loss"] > 0 for line in batch(runs.one_bad, 2, 0))


def test_the_kept_batch_holds_what_the_update_saw(runs: Runs) -> None:
    lines = batch(runs.one_bad, 2, 0) + batch(runs.one_bad, 2, 1)
    logged = metrics(runs.one_bad)[1]
    assert len({line["problem"] for line in lines}) == 8
    assert {line["alpha"] for line in lines} == {logged["exposure/alpha"]}
    assert sum(len(line["response_ids"]) for line in lines) / 8 == logged["rollout/length"]


def test_too_many_in_a_row_end_the_run_alike_on_all_ranks(by_rank: list[Runs]) -> None:
    saved = by_rank[0].all_bad / "checkpoints" / "step_3"
    assert by_rank[0].error == by_rank[1].error
    assert by_rank[0].error.startswith("2 updates in a row had a loss or gradient that is not finite")
    assert f"{saved} holds the weights from before them" in by_rank[0].error


def test_nothing_is_lost_when_the_run_ends(runs: Runs) -> None:
    assert runs.newest_after_error == "step_3"


def test_the_same_command_goes_on_after_the_skipped_updates(runs: Runs) -> None:
    assert [line["optim/skipped"] for line in metrics(runs.all_bad)] == [0.0, 1.0, 1.0, 0.0]
