"""What a real TrainingRun makes of its settings: both roles' prompts, temperature, grounding, seeds of the rollouts, graded answers."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Qwen3ForCausalLM

from megatron_atesd.config import load_config
from megatron_atesd.data.problems import load_problems
from megatron_atesd.distill.divergence import Divergence
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.records import Problem, Rollout
from megatron_atesd.train import loop
from megatron_atesd.train.heartbeat import Heartbeat
from megatron_atesd.train.training_run import TrainingRun
from tests.support.small_run import arguments, save_inputs

ALPHA = 0.3


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Inputs of a small run, with predictions sharp enough that every token of the prompt matters, inside a parallel session."""
    folder = save_inputs(tmp_path_factory.mktemp("inputs"))
    model = Qwen3ForCausalLM.from_pretrained(folder / "hf")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder / "hf")
    with parallel_session():
        yield folder


@pytest.fixture(scope="module")
def run(inputs: Path) -> TrainingRun:
    return start(inputs)


def start(inputs: Path, *overrides: str) -> TrainingRun:
    config = load_config(arguments(inputs, inputs / "run", "--parallel.tensor=1", *overrides))
    return TrainingRun(config, *(load_problems(inputs / f"{name}.jsonl") for name in ("train", "probe")))


def rollouts(run: TrainingRun) -> list[Rollout]:
    """References as responses, to the probe problems."""
    return [Rollout(p, run.renderer.student(p), run.renderer.reference(p), False) for p in run.probe_problems]


def responses(run: TrainingRun, problems: Sequence[Problem], update: int) -> list[Sequence[int]]:
    return [rollout.response_ids for rollout in run.rollout(problems, update)]


def test_the_teacher_of_an_example_sees_the_exposure_in_force(run: TrainingRun) -> None:
    seen = [example.teacher_prompt for example in run.examples(rollouts(run), ALPHA)]
    assert seen == [run.renderer.teacher(p, ALPHA).prompt_ids for p in run.probe_problems]
    assert seen != [run.renderer.teacher(p, 1.0).prompt_ids for p in run.probe_problems]


def test_the_student_of_an_example_sees_what_it_answered(run: TrainingRun) -> None:
    examples = run.examples(rollouts(run), ALPHA)
    assert [(e.student_prompt, e.response) for e in examples] == [(r.prompt_ids, r.response_ids) for r in rollouts(run)]


def test_in_mode_none_the_teacher_sees_the_students_prompt(inputs: Path) -> None:
    none = start(inputs, "--exposure.mode=none")
    assert [e.teacher_prompt for e in none.examples(rollouts(none), ALPHA)] == [none.renderer.student(p) for p in none.probe_problems]


@pytest.mark.parametrize(("setting", "expected"), [((), 0.8), (("--distill.temperature=1.4",), 1.4)])
def test_the_divergence_takes_the_rollouts_temperature_unless_it_has_its_own(
    setting: tuple[str, ...], expected: float, inputs: Path
) -> None:
    assert start(inputs, "--rollout.temperature=0.8", *setting).divergence.temperature == expected


def test_the_divergence_is_what_the_settings_say(inputs: Path) -> None:
    settings = {"divergence": "jsd", "jsd_beta": 0.3, "clip": 0.7, "temperature": 1.4, "chunk": 9, "top_k": 5, "compile": True}
    assert start(inputs, *(f"--distill.{name}={value}" for name, value in settings.items())).divergence == Divergence(
        "jsd", beta=0.3, clip=0.7, temperature=1.4, chunk=9, top_k=5, compile=True
    )


@pytest.mark.parametrize("normalize", ["token", "sequence"])
def test_an_update_normalises_its_loss_as_the_settings_say(normalize: str, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class SeenError(Exception):
        pass

    def seen(*arguments: object) -> None:
        raise SeenError(arguments[-1])

    monkeypatch.setattr(loop, "distill_step", seen)
    run = start(inputs, f"--distill.normalize={normalize}", "--data.batch=1", "--rollout.max_new_tokens=1")
    run.service.observe(run.probe(0, run.service.propose(0), None))
    with Heartbeat(1.0) as heartbeat, pytest.raises(SeenError, match=normalize):
        loop.train_step(run, 0, heartbeat)


def plain_grounding(run: TrainingRun, text: str, alpha: float) -> float:
    """Mean log-probability of the probe texts on the start's weights, by transformers, one sequence at a time."""
    model = Qwen3ForCausalLM.from_pretrained(run.hf_folder).eval()
    chosen = []
    for problem in run.probe_problems:
        prompt = run.renderer.teacher(problem, alpha).prompt_ids
        response = run.renderer.reference(problem) if text == "solution" else run.renderer.answer(problem)
        with torch.no_grad():
            logits_SV = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        chosen.append(torch.log_softmax(logits_SV, dim=-1)[range(len(response)), list(response)])
    return torch.cat(chosen).mean().item()


@pytest.mark.parametrize("text", ["solution", "answer"])
def test_grounding_is_the_exposed_teachers_mean_log_probability(text: str, inputs: Path) -> None:
    grounded = start(inputs, f"--exposure.grounding={text}")
    for parameter in grounded.model.parameters():  # the teacher still holds the start's
        parameter.data.mul_(0.5)
    expected = plain_grounding(grounded, text, ALPHA)
    assert expected < 0
    assert expected != pytest.approx(plain_grounding(grounded, text, 1.0), rel=1e-3)
    assert grounded._grounding(ALPHA) == pytest.approx(expected, rel=1e-5)


def test_one_update_draws_the_same_responses_again(run: TrainingRun) -> None:
    assert responses(run, run.probe_problems, 3) == responses(run, run.probe_problems, 3)


def test_another_update_draws_other_responses(run: TrainingRun) -> None:
    assert responses(run, run.probe_problems, 3) != responses(run, run.probe_problems, 4)


def test_another_run_seed_draws_other_responses(run: TrainingRun, inputs: Path) -> None:
    assert responses(run, run.probe_problems, 3) != responses(start(inputs, "--run.seed=2"), run.probe_problems, 3)


def test_problems_of_equal_text_draw_their_own_responses(run: TrainingRun) -> None:
    twins = [replace(run.probe_problems[0], id=name) for name in ("one", "other")]
    one, other = responses(run, twins, 3)
    assert one != other


def test_a_response_with_the_references_answer_is_answered(run: TrainingRun) -> None:
    assert all(run.answered(rollout) for rollout in rollouts(run))


def test_a_response_with_another_answer_is_not_answered(run: TrainingRun) -> None:
    first = rollouts(run)[0]
    wrong = next(p for p in run.probe_problems if p.answer != first.problem.answer)
    assert not run.answered(replace(first, response_ids=run.renderer.reference(wrong)))
