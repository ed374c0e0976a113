"""What tools/mismatch.py measures is what a training on the same problems, with the same responses, measures at each exposure."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_atesd.checkpoint.reading import write_folder
from megatron_atesd.config import load_config
from megatron_atesd.distill.step import StepResult, measure_step
from megatron_atesd.distill.teacher import Teacher
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.records import Rollout
from megatron_atesd.rollout.sampling import sequence_seed
from megatron_atesd.train.checks import check_before_work
from megatron_atesd.train.mismatch import Mismatch
from megatron_atesd.train.mismatch_inputs import Measurement, read_inputs
from megatron_atesd.train.training_run import TrainingRun
from tests.support.small_run import arguments, save_sharp_inputs

ALPHAS = [0.0, 0.4, 0.45, 1.0]  # of two segments, both in the middle reveal one
PROBLEMS, SAMPLES = 5, 2


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Inputs of a small run inside a parallel session."""
    folder = save_sharp_inputs(tmp_path_factory.mktemp("inputs"))
    with parallel_session():
        yield folder


@pytest.fixture(scope="module")
def run(inputs: Path) -> TrainingRun:
    """A training whose student has moved away from its teacher, with the first probe problems."""
    config = load_config(arguments(inputs, inputs / "run", "--parallel.tensor=1", f"--data.probe_size={PROBLEMS}"))
    run = TrainingRun(config, check_before_work(config, 1))
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    write_folder(inputs / "checkpoint", run.state(0), run.hf_folder)
    return run


def measure(inputs: Path, out: Path, model: str = "checkpoint", seed: int = 3, problems: int = PROBLEMS, **distill: Any) -> Mismatch:
    settings = load_config(arguments(inputs, inputs / "run", "--parallel.tensor=1"))
    settings = replace(settings, distill=replace(settings.distill, **distill))
    task = Measurement(inputs / model, inputs / "probe.jsonl", out, ALPHAS, problems, SAMPLES, seed, settings)
    return Mismatch(task, read_inputs(task, 1))


@pytest.fixture(scope="module")
def measured(run: TrainingRun, inputs: Path) -> Mismatch:
    return measure(inputs, inputs / "out")


@pytest.fixture(scope="module")
def record(measured: Mismatch) -> dict[str, Any]:
    return measured.record()


def step(run: TrainingRun, rollouts: Sequence[Rollout], alpha: float) -> StepResult:
    return measure_step(run.model, run.teacher, run.examples(rollouts, run.contexts(rollouts, alpha)), run.divergence, 100)


def test_the_student_answers_as_in_training(run: TrainingRun, measured: Mismatch) -> None:
    expected = []
    for problem in run.probe_problems:
        seeds = [sequence_seed("mismatch", 3, problem.id, sample) for sample in range(SAMPLES)]
        run.engine.refresh()
        expected += run.engine.generate([run.renderer.student(problem)] * SAMPLES, seeds, run.config.rollout)
    assert [r.response_ids for r in measured.rollouts] == [r.ids for r in expected]
    assert [r.problem.id for r in measured.rollouts] == [p.id for p in run.probe_problems for _ in range(SAMPLES)]


def test_responses_depend_on_the_seed_and_not_on_the_number_of_problems(inputs: Path, measured: Mismatch, tmp_path: Path) -> None:
    fewer, other = measure(inputs, tmp_path / "fewer", problems=3), measure(inputs, tmp_path / "other", seed=4)
    assert fewer.pairs == measured.pairs[: 3 * SAMPLES]
    assert other.pairs != measured.pairs


@pytest.mark.parametrize("name", ["kl", "disagreement", "confidence", "teacher_entropy"])
def test_a_row_has_what_a_training_step_of_its_exposure_says(
    run: TrainingRun, measured: Mismatch, record: dict[str, Any], name: str
) -> None:
    expected = [getattr(step(run, measured.rollouts, alpha), name) for alpha in ALPHAS]
    assert [row[name] for row in record["rows"]] == pytest.approx(expected, rel=1e-5)
    assert record["rows"][0]["kl"] > 0.01


def test_the_error_is_over_problems_whose_samples_belong_together(run: TrainingRun, measured: Mismatch, record: dict[str, Any]) -> None:
    of_problem = [measured.rollouts[i * SAMPLES : (i + 1) * SAMPLES] for i in range(PROBLEMS)]
    tokens = np.array([sum(len(r.response_ids) for r in rollouts) for rollouts in of_problem])
    sums = np.array([step(run, rollouts, 1.0).kl for rollouts in of_problem]) * tokens
    residual = sums - sums.sum() / tokens.sum() * tokens
    expected = np.sqrt(PROBLEMS / (PROBLEMS - 1) * (residual**2).sum()) / tokens.sum()
    assert record["rows"][-1]["errors"]["kl"] == pytest.approx(expected, rel=1e-4)


def test_grounding_is_that_of_a_training(run: TrainingRun, record: dict[str, Any]) -> None:
    assert [row["grounding"] for row in record["rows"]] == pytest.approx([run._grounding(alpha) for alpha in ALPHAS], rel=1e-5)


def test_grounding_that_is_off_is_not_measured(run: TrainingRun, inputs: Path, tmp_path: Path) -> None:
    settings = load_config(arguments(inputs, inputs / "run", "--parallel.tensor=1", "--exposure.grounding=off"))
    task = Measurement(inputs / "hf", inputs / "probe.jsonl", tmp_path / "out", ALPHAS, 2, 1, 1, settings)
    assert "grounding" not in Mismatch(task, read_inputs(task, 1)).record()["rows"][0]


def test_revealed_segments_are_means_over_the_problems(run: TrainingRun, record: dict[str, Any]) -> None:
    contexts = [[run.teacher_view.context(problem, alpha) for problem in run.probe_problems] for alpha in ALPHAS]
    assert [row["revealed"] for row in record["rows"]] == pytest.approx([np.mean([c.revealed for c in seen]) for seen in contexts])
    assert record["rows"][0]["segments"] == pytest.approx(np.mean([c.segments for c in contexts[0]]))


def test_the_record_says_how_many_prompts_were_different(run: TrainingRun, measured: Mismatch, record: dict[str, Any]) -> None:
    seen = [{run.teacher_view.context(problem, alpha).prompt_ids for alpha in ALPHAS} for problem in run.probe_problems]
    assert record["teacher_prompts"] == {"different": SAMPLES * sum(map(len, seen)), "all": SAMPLES * len(ALPHAS) * PROBLEMS}
    assert record["teacher_prompts"]["different"] < record["teacher_prompts"]["all"]


def test_the_teacher_is_the_checkpoints_and_a_folder_without_one_gives_both_roles_its_weights(
    run: TrainingRun, inputs: Path, measured: Mismatch, record: dict[str, Any], tmp_path: Path
) -> None:
    assert record["teacher"] == "the checkpoint's"
    assert all(torch.equal(mine, its) for mine, its in zip(measured.teacher.weights, run.teacher.weights, strict=True))
    assert measure(inputs, tmp_path / "base", model="hf").record()["teacher"] == "the student's weights"


def test_a_live_teacher_has_the_students_weights(run: TrainingRun, inputs: Path, tmp_path: Path) -> None:
    live = measure(inputs, tmp_path / "live", teacher="live")
    teacher = Teacher(run.model, "live")
    examples = run.examples(live.rollouts, run.contexts(live.rollouts, 1.0))
    expected = measure_step(run.model, teacher, examples, run.divergence, 100).kl
    assert live.record()["rows"][-1]["kl"] == pytest.approx(expected, rel=1e-5)
