"""Runs that really go wrong: their alarms go off, one of health.stop_on ends the run on all ranks, and a resumed run watches on."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from transformers import Qwen3ForCausalLM

from megatron_atesd.config import load_config
from megatron_atesd.errors import TrainingError
from megatron_atesd.faults.state import metrics, reproducible
from megatron_atesd.records import Problem, Rollout
from megatron_atesd.train import loop
from megatron_atesd.train.training_run import TrainingRun
from tests.support.launch import run_distributed
from tests.support.small_run import arguments, newest, save_inputs

pytestmark = pytest.mark.slow

QUIET = ("--parallel.tensor=1", "--monitor.tensorboard=false", "--monitor.samples=0", "--checkpoint.every=0")
# A model that sees nothing but the last token, asked for the most likely one: it repeats itself, and no reference makes a difference.
# None of its responses is right, so that train_accuracy has no gradient for mode aligned.
BLIND = ("--rollout.temperature=0", "--distill.temperature=1", "--rollout.max_new_tokens=24", "--exposure.mode=aligned")
BLIND += ("--exposure.progress=train_accuracy", "--health.window=2", "--health.controller_idle=2", "--run.updates=5")
HOT = ("--optimizer.lr=1", "--optimizer.clip_grad=100", "--exposure.mode=fixed", "--rollout.max_new_tokens=128")
HOT += ("--health.window=1", "--run.updates=3")


@dataclass(frozen=True)
class Runs:
    """unbroken: without health.stop_on. stopped: ended by its alarm loops, tried again, then resumed without it. errors: of both ends."""

    unbroken: Path
    stopped: Path
    errors: tuple[str, str]
    newest_after_error: str
    updates_after_errors: tuple[int, int]
    report_after_error: bool


@contextmanager
def perturbed() -> Iterator[None]:
    """An engine whose log-probabilities are .3 nats off."""
    rollout: Callable[..., list[Rollout]] = TrainingRun.rollout

    def off(run: TrainingRun, problems: Sequence[Problem], first: int) -> list[Rollout]:
        return [replace(r, logprobs=tuple(value + 0.3 for value in r.logprobs)) for r in rollout(run, problems, first)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingRun, "rollout", off)
        yield


def ended_by(settings: list[str]) -> str:
    with pytest.raises(TrainingError) as error:
        loop.train(load_config(settings))
    parallel_state.destroy_model_parallel()  # as the end of the process would
    dist.barrier()
    return str(error.value)


def train_blind(inputs: Path, folder: Path) -> Runs:
    """On two data-parallel ranks."""
    dist.init_process_group("gloo")
    unbroken, stopped = folder / "unbroken", folder / "stopped"
    with perturbed():
        loop.train(load_config(arguments(inputs, unbroken, *QUIET, *BLIND)))
        watched = arguments(inputs, stopped, *QUIET, *BLIND, "--health.stop_on=[leakage, loops]", "--monitor.report=true")
        first = ended_by(watched)
        reported = (stopped / "report.html").is_file()
        saved, trained = newest(stopped), len(metrics(stopped))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "TrainingRun", None)  # the second start must not come so far
            again = ended_by(watched)
        counts = trained, len(metrics(stopped))
        loop.train(load_config(arguments(inputs, stopped, *QUIET, *BLIND, "--health.stop_on=[leakage]")))
    return Runs(unbroken, stopped, (first, again), saved, counts, reported)


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[Runs]:
    inputs = save_inputs(tmp_path_factory.mktemp("inputs"))
    model = Qwen3ForCausalLM.from_pretrained(inputs / "hf")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("o_proj.weight"):
                parameter.zero_()
    model.save_pretrained(inputs / "hf")
    return run_distributed(train_blind, 2, inputs, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def runs(by_rank: list[Runs]) -> Runs:
    return by_rank[0]


def recorded(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "health.jsonl").read_text().splitlines()]


def test_a_blind_model_that_repeats_itself_in_an_engine_that_is_off_sets_off_its_alarms(runs: Runs) -> None:
    said = [(line["update"], line["alarm"]) for line in recorded(runs.unbroken)]
    assert said == [(1, "logprob_gap"), (2, "kl_collapse"), (2, "truncation"), (2, "loops"), (4, "controller_idle")]


def test_the_metrics_say_in_which_updates_they_held(runs: Runs) -> None:
    lines = metrics(runs.unbroken)
    assert [line["health/loops"] for line in lines] == [0.0, 1.0, 1.0, 1.0, 1.0]
    assert [line["health/controller_idle"] for line in lines] == [0.0, 0.0, 0.0, 1.0, 1.0]
    assert {line["health/leakage"] for line in lines} == {0.0}


def test_an_alarm_of_stop_on_ends_the_run_alike_on_all_ranks(by_rank: list[Runs]) -> None:
    assert by_rank[0].errors == by_rank[1].errors
    assert by_rank[0].errors[0].startswith("the alarm loops of health.stop_on ended the run after update 2: 100 % of the responses repeat")
    assert f"{by_rank[0].stopped / 'checkpoints' / 'step_2'} holds the state" in by_rank[0].errors[0]


def test_a_checkpoint_is_saved_at_the_update_of_the_alarm(runs: Runs) -> None:
    assert runs.newest_after_error == "step_2"


def test_the_run_that_an_alarm_ends_has_a_report(by_rank: list[Runs]) -> None:
    assert [runs.report_after_error for runs in by_rank] == [True, True]


def test_the_same_command_ends_again_before_any_work(runs: Runs) -> None:
    assert runs.errors[0] == runs.errors[1]
    assert runs.updates_after_errors == (2, 2)


def test_a_run_that_goes_on_watches_as_if_unbroken(runs: Runs) -> None:
    lines = [[reproducible(line) for line in metrics(folder)] for folder in (runs.unbroken, runs.stopped)]
    assert lines[0] == lines[1]
    assert (runs.unbroken / "health.jsonl").read_text() == (runs.stopped / "health.jsonl").read_text()


def test_a_learning_rate_that_ruins_the_student_sets_off_its_alarms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop.train(load_config(arguments(save_inputs(tmp_path), tmp_path / "run", *QUIET, *HOT)))
    said = {line["alarm"] for line in recorded(tmp_path / "run")}
    assert said >= {"kl_explosion", "entropy_collapse", "length_drift"}
    printed = capsys.readouterr().err
    assert [name for name in said if f"warning: health.{name} " not in printed] == []


def test_an_alarm_after_the_last_update_ends_nothing(tmp_path: Path) -> None:
    settings = (*QUIET, *HOT, "--run.updates=2", "--health.stop_on=[kl_explosion]")
    loop.train(load_config(arguments(save_inputs(tmp_path), tmp_path / "run", *settings)))
    assert (2, "kl_explosion") in [(line["update"], line["alarm"]) for line in recorded(tmp_path / "run")]
    summary = tmp_path / "run" / "summary.json"
    assert summary.is_file()
    summary.unlink()
    loop.train(load_config(arguments(tmp_path, tmp_path / "run", *settings)))  # also when it is started again
    assert summary.is_file()
