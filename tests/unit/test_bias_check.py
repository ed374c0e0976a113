"""A bias check leaves a run as it was, bit for bit, and measures each exposure from the same state."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_atesd.config import TrainConfig, load_config, validate
from megatron_atesd.errors import ConfigError
from megatron_atesd.exposure.modes import highest_exposure
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.records import Exposure, Rollout
from megatron_atesd.train import training_run
from megatron_atesd.train.bias import BiasCheck
from megatron_atesd.train.bias_check import EXPOSURES, SAMPLES, check_bias, lead_in
from megatron_atesd.train.heartbeat import Heartbeat
from megatron_atesd.train.student_step import student_step
from megatron_atesd.train.training_run import TrainingRun
from tests.support.bias_run import next_update, start, state_of
from tests.support.small_run import arguments, save_inputs

LAYOUTS = {
    "plain": (),
    "distributed": ("--optimizer.use_distributed_optimizer=true", "--ddp.overlap_grad_reduce=true", "--ddp.overlap_param_gather=true"),
    "bf16": ("--model.dtype=bf16",),
    "bf16 distributed": ("--model.dtype=bf16", "--optimizer.use_distributed_optimizer=true"),
    "sgd": ("--optimizer.optimizer=sgd",),
    "bf16 sgd": ("--model.dtype=bf16", "--optimizer.optimizer=sgd", "--optimizer.sgd_momentum=0.5"),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = save_inputs(tmp_path_factory.mktemp("inputs"))
    with parallel_session():
        yield folder


def check(run: TrainingRun, stopped: object = None) -> BiasCheck | None:
    with Heartbeat(1.0) as heartbeat:
        return check_bias(run, heartbeat, lambda: stopped)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_check_leaves_the_run_as_it_was(layout: str, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, moved = start(inputs, *LAYOUTS[layout]), list[bool]()
    before, load = state_of(run), run.load
    monkeypatch.setattr(run, "load", lambda folder: moved.append(state_of(run) != before) or load(folder))
    check(run)
    assert moved == [True] * len(EXPOSURES)
    assert state_of(run) == before
    assert next_update(run) == next_update(start(inputs, *LAYOUTS[layout]))


def test_a_check_of_a_run_that_keeps_own_responses_leaves_them(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_run, "graded", lambda rollouts, renderer: [r.response_ids[0] % 2 == 0 for r in rollouts])
    run = start(inputs, "--exposure.progress=probe_margin", "--rollout.max_new_tokens=48")
    run.gather()
    before = state_of(run)
    assert run.own.right
    check(run)
    assert state_of(run) == before


def test_a_stopped_check_leaves_the_run_as_it_was(inputs: Path) -> None:
    run = start(inputs)
    before = state_of(run)
    assert check(run, stopped="SIGTERM") is None
    assert state_of(run) == before


def test_nothing_stays_on_disk_also_after_an_interruption(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        assert (inputs / "run" / "bias_check.partial" / "state").is_dir()
        raise KeyboardInterrupt

    run = start(inputs)
    monkeypatch.setattr("megatron_atesd.train.bias_check.student_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        check(run)
    assert not (inputs / "run").exists()


def test_what_is_there_in_the_run_directory_stays(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "bias_check.partial").mkdir()  # of a killed check
    check(start(inputs, f"--run.dir={tmp_path}"))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_each_exposure_is_measured_after_its_own_updates(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Grading that depends on the response alone tells which weights it was drawn from.
    monkeypatch.setattr("megatron_atesd.train.bias_check.graded", lambda rollouts, renderer: [is_even(r) for r in rollouts])
    found = check(run := start(inputs))
    assert found is not None
    again = start(inputs)
    for alpha in EXPOSURES:
        fresh = start(inputs)
        for update in range(run.config.exposure.bias_check):
            student_step(fresh, fresh.rollout(fresh.sampler.batch_at(update), fresh.sampler.place_at(update)), Exposure(alpha, -1))
        assert found.after[alpha].losses["probe_nll"] == fresh._mean(fresh.references.pairs)
        expected = [0.0] * len(fresh.probe_problems)
        for response in fresh.probe_rollouts(SAMPLES, earlier=fresh.config.exposure.probe_samples + fresh.config.run.updates + 1):
            place = [p.id for p in fresh.probe_problems].index(response.problem.id)
            expected[place] += is_even(response) / SAMPLES
        assert list(found.after[alpha].accuracy_N) == expected
    assert found.before.losses["probe_nll"] == again._mean(again.references.pairs)


def test_a_check_after_other_updates_has_the_start_model_s_responses(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_run, "graded", lambda rollouts, renderer: [is_even(r) for r in rollouts])
    run, fresh = start(inputs), start(inputs)
    with Heartbeat(1.0) as heartbeat:
        own = lead_in(run, heartbeat, lambda: None, 0.25, 2)
        found = check_bias(run, heartbeat, lambda: None, (0.0, 0.75), own, done=2)
    responses = fresh.graded_own()
    assert own is not None
    assert (own.rollouts, own.right) == (responses.rollouts, responses.right)
    path = [0.25, 0.25, *[0.75] * run.config.exposure.bias_check]
    for update, alpha in enumerate(path):
        student_step(fresh, fresh.rollout(fresh.sampler.batch_at(update), fresh.sampler.place_at(update)), Exposure(alpha, -1))
    assert found is not None
    assert list(found.after) == [0.0, 0.75]
    assert found.after[0.75].losses["probe_nll"] == fresh._mean(fresh.references.pairs)


def is_even(rollout: Rollout) -> bool:
    return sum(rollout.response_ids) % 2 == 0


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        (("--exposure.bias_check=7",), r"exposure\.bias_check is 7, must not exceed run\.updates 6"),
        (("--exposure.bias_check=-1",), r"exposure\.bias_check is -1, must be 0 or more"),
        (("--exposure.bias_check=1", "--exposure.mode=none"), r"exposure\.mode none has none"),
    ],
)
def test_a_check_that_cannot_be_is_refused(given: tuple[str, ...], rule: str, inputs: Path) -> None:
    with pytest.raises(ConfigError, match=rule):
        validate(load_config(arguments(inputs, inputs / "run", "--parallel.tensor=1", *given)))


def test_prompts_must_fit_the_exposures_of_the_check(inputs: Path) -> None:
    given = ("--exposure.mode=fixed", "--exposure.fixed=0.2")
    assert highest_exposure(settings(inputs, *given).exposure) == 0.2
    assert highest_exposure(settings(inputs, *given, "--exposure.bias_check=1").exposure) == 1.0


def settings(inputs: Path, *given: str) -> TrainConfig:
    return load_config(arguments(inputs, inputs / "run", *given))
