"""What a real TrainingRun makes of its settings: both roles' prompts, temperature, grounding, seeds of the rollouts, graded answers."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3ForCausalLM

from megatron_atesd.config import load_config
from megatron_atesd.data.shuffled import ShuffledReferences
from megatron_atesd.distill import readings
from megatron_atesd.distill.divergence import Divergence
from megatron_atesd.distill.fused import distill_loss
from megatron_atesd.distill.readings import teacher_passes
from megatron_atesd.distill.step import distill_step, measure_step
from megatron_atesd.errors import ConfigError
from megatron_atesd.model.chunk import ModelChunk
from megatron_atesd.model.decoding import Decoder
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.records import Exposure, Problem, Rollout
from megatron_atesd.train import loop, student_step, training_run
from megatron_atesd.train.checks import check_before_work
from megatron_atesd.train.heartbeat import Heartbeat
from megatron_atesd.train.progress import Finished
from megatron_atesd.train.training_run import TrainingRun
from tests.support.small_run import arguments, save_sharp_inputs

ALPHA = 0.3
START = Exposure(1.0, -1)
DIVERGENCE = Divergence()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Inputs of a small run inside a parallel session."""
    folder = save_sharp_inputs(tmp_path_factory.mktemp("inputs"))
    with parallel_session():
        yield folder


@pytest.fixture(scope="module")
def run(inputs: Path) -> TrainingRun:
    return start(inputs)


def start(inputs: Path, *overrides: str) -> TrainingRun:
    config = load_config(arguments(inputs, inputs / "run", "--parallel.tensor=1", *overrides))
    return TrainingRun(config, check_before_work(config, 1))


def rollouts(run: TrainingRun) -> list[Rollout]:
    """References as responses, to the probe problems."""
    return [Rollout(p, run.renderer.student(p), run.renderer.reference(p), False) for p in run.probe_problems]


def responses(run: TrainingRun, problems: Sequence[Problem], first: int) -> list[Sequence[int]]:
    return [rollout.response_ids for rollout in run.rollout(problems, first)]


def test_the_teacher_of_an_example_sees_the_exposure_in_force(run: TrainingRun) -> None:
    seen = [example.teacher_prompt for example in run.examples(rollouts(run), run.contexts(rollouts(run), ALPHA))]
    assert seen == [run.renderer.teacher(p, ALPHA).prompt_ids for p in run.probe_problems]
    assert seen != [run.renderer.teacher(p, 1.0).prompt_ids for p in run.probe_problems]


def test_the_student_of_an_example_sees_what_it_answered(run: TrainingRun) -> None:
    examples = run.examples(rollouts(run), run.contexts(rollouts(run), ALPHA))
    assert [(e.student_prompt, e.response) for e in examples] == [(r.prompt_ids, r.response_ids) for r in rollouts(run)]


def test_the_second_prompt_is_what_the_target_mixes_with(inputs: Path) -> None:
    def seconds(*overrides: str) -> list[Sequence[int]]:
        run = start(inputs, *overrides)
        return [example.second_prompt for example in run.examples(rollouts(run), run.contexts(rollouts(run), ALPHA))]

    run = start(inputs)
    at_half = [run.renderer.teacher(p, 0.5).prompt_ids for p in run.probe_problems]
    assert seconds("--distill.target=mix_exposures", "--distill.mix_exposure=0.5") == at_half
    assert seconds("--distill.target=mix_unaided") == [run.renderer.student(p) for p in run.probe_problems]
    assert seconds() == [()] * len(run.probe_problems)


def test_what_exposures_are_mixed_with_is_read_once(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mode aligned compares three exposures: four passes of the teacher."""
    settings = ("--exposure.mode=aligned", "--exposure.progress=probe_nll", "--exposure.grid=3", "--distill.target=mix_exposures")
    run, reading, prompts = start(inputs, *settings), readings.response_states, list[list[Sequence[int]]]()

    def watched(model: Any, pairs: Sequence[Any], tokens: int) -> Any:
        prompts.append([prompt for prompt, _ in pairs])
        return reading(model, pairs, tokens)

    monkeypatch.setattr(readings, "response_states", watched)
    assert run.alignment(rollouts(run)) is not None
    read = rollouts(run)[:2]  # exposure.score_share
    assert prompts == [[c.prompt_ids for c in run.contexts(read, alpha)] for alpha in (0.0, 0.5, 1.0, run.config.distill.mix_exposure)]


def test_in_mode_none_the_teacher_sees_the_students_prompt(inputs: Path) -> None:
    none = start(inputs, "--exposure.mode=none")
    contexts = none.contexts(rollouts(none), ALPHA)
    assert [c.prompt_ids for c in contexts] == [none.renderer.student(p) for p in none.probe_problems]
    assert {c.revealed for c in contexts} == {0}


def test_without_a_reference_the_teacher_is_asked_the_bare_question(inputs: Path) -> None:
    bare = start(inputs, "--exposure.mode=fixed", "--exposure.fixed=0", "--exposure.reference=none")
    contexts = bare.contexts(rollouts(bare), 0.0)
    assert contexts == [bare.renderer.bare_teacher(p) for p in bare.probe_problems]


def test_a_shuffled_reference_is_that_of_another_probe_problem_wherever_the_teacher_looks(inputs: Path) -> None:
    shuffled = start(inputs, "--exposure.reference=shuffled", "--exposure.grounding=answer")
    lender = ShuffledReferences(shuffled.config.run.seed, shuffled.probe_problems)
    prompts = [shuffled.renderer.teacher(p, ALPHA, lender.of(p)).prompt_ids for p in shuffled.probe_problems]
    assert [c.prompt_ids for c in shuffled.contexts(rollouts(shuffled), ALPHA)] == prompts
    answers = [shuffled.renderer.answer(p) for p in shuffled.probe_problems]
    grounding = -shuffled._mean(list(zip(prompts, answers, strict=True)))  # at the start the teacher is the student
    assert shuffled._grounding(ALPHA) == pytest.approx(grounding, rel=1e-6)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("--exposure.mode=none", "--exposure.reference=shuffled"), r"exposure\.reference is shuffled, but with exposure\.mode none"),
        (("--exposure.mode=fixed", "--exposure.reference=none"), r"exposure\.reference is none, which leaves nothing to expose"),
        (("--exposure.mode=random", "--exposure.reference=none"), r"exposure\.reference is none, which leaves nothing to expose"),
        (
            ("--exposure.mode=fixed", "--exposure.fixed=0", "--exposure.reference=none", "--exposure.bias_check=1"),
            r"exposure\.reference none has none",
        ),
    ],
)
def test_a_reference_that_makes_no_difference_is_refused(overrides: tuple[str, ...], said: str, inputs: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        start(inputs, *overrides)


@pytest.mark.parametrize(("setting", "expected"), [((), 0.8), (("--distill.temperature=1.4",), 1.4)])
def test_the_divergence_takes_the_rollouts_temperature_unless_it_has_its_own(
    setting: tuple[str, ...], expected: float, inputs: Path
) -> None:
    assert start(inputs, "--rollout.temperature=0.8", *setting).divergence.temperature == expected


def test_the_divergence_is_what_the_settings_say(inputs: Path) -> None:
    settings = {"divergence": "jsd", "jsd_beta": 0.3, "clip": 0.7, "temperature": 1.4, "chunk": 9, "top_k": 5, "compile": True}
    run = start(inputs, "--distill.clip_mode=token", *(f"--distill.{name}={value}" for name, value in settings.items()))
    assert run.divergence == Divergence("jsd", beta=0.3, clip=0.7, temperature=1.4, chunk=9, top_k=5, compile=True, clip_mode="token")


def test_the_shares_that_the_clip_touches_are_of_all_tokens_and_of_the_whole_kl(run: TrainingRun) -> None:
    """The first token of each micro-batch is clipped, with a KL of 3 nats; each other has 1 nat."""
    calls: list[int] = []

    def first_clipped(hidden_TH: torch.Tensor, *rest: Any) -> Any:
        loss, statistics = distill_loss(hidden_TH, *rest)
        calls.append(len(hidden_TH))
        first_T = (torch.arange(len(hidden_TH)) == 0).float()
        return loss, replace(statistics, clipped_T=first_T, kl_T=1 + 2 * first_T)

    run.optimization.zero_grad()
    examples = run.examples(rollouts(run), run.contexts(rollouts(run), ALPHA))
    step = distill_step(run.optimization.wrapped, run.model, run.teacher, examples, DIVERGENCE, 128, loss=first_clipped)
    batches, tokens = len(calls), sum(calls)
    assert 1 < batches < tokens
    assert step.clipped_tokens == pytest.approx(batches / tokens)
    assert step.clipped_kl == pytest.approx(3 * batches / (tokens + 2 * batches))


@pytest.mark.parametrize(("share", "read"), [(1.0, 8), (0.25, 2), (0.01, 1)])
def test_a_share_of_the_rollouts_is_read_to_compare_exposures(
    share: float, read: int, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("--exposure.mode=aligned", "--exposure.progress=probe_nll", "--exposure.grid=3", f"--exposure.score_share={share}")
    run, lengths = start(inputs, *settings), list[int]()

    def watched(model: Any, teacher: Any, views: Sequence[Sequence[Any]], *rest: Any) -> Any:
        lengths.extend(map(len, views))
        return teacher_passes(model, teacher, views, *rest)

    monkeypatch.setattr(training_run, "teacher_passes", watched)
    assert run.alignment(rollouts(run)) is not None
    assert lengths == [read] * 3


def gradient_of(parameter: Any) -> torch.Tensor:
    """Where megatron.core's DistributedDataParallel adds it up."""
    return parameter.main_grad


def test_another_loss_takes_the_place_of_distill_loss(run: TrainingRun) -> None:
    def tripled(*arguments: Any) -> Any:
        loss, statistics = distill_loss(*arguments)
        return 3 * loss, statistics

    def result(**options: Any) -> tuple[float, float, float]:
        run.optimization.zero_grad()
        examples = run.examples(rollouts(run), run.contexts(rollouts(run), ALPHA))
        step = distill_step(run.optimization.wrapped, run.model, run.teacher, examples, DIVERGENCE, 128, **options)
        return step.loss, step.kl, math.sqrt(sum(float(gradient_of(p).square().sum()) for p in run.model.parameters()))

    loss, kl, norm = result()
    assert result(loss=tripled) == pytest.approx((3 * loss, kl, 3 * norm), rel=1e-5)
    assert min(loss, norm) > 1e-3


@pytest.mark.parametrize("normalize", ["token", "sequence"])
def test_an_update_normalises_its_loss_as_the_settings_say(normalize: str, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class SeenError(Exception):
        pass

    def seen(*arguments: object, **_: object) -> None:
        raise SeenError(arguments[-1])

    monkeypatch.setattr(student_step, "distill_step", seen)
    run = start(inputs, f"--distill.normalize={normalize}", "--data.batch=1", "--rollout.max_new_tokens=1")
    run.service.observe(run.probe(Finished(0), START)[0])
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


def test_one_place_in_the_stream_draws_the_same_responses_again(run: TrainingRun) -> None:
    assert responses(run, run.probe_problems, 3) == responses(run, run.probe_problems, 3)


def test_another_place_draws_other_responses(run: TrainingRun) -> None:
    assert responses(run, run.probe_problems, 3) != responses(run, run.probe_problems, 4)


def test_another_run_seed_draws_other_responses(run: TrainingRun, inputs: Path) -> None:
    assert responses(run, run.probe_problems, 3) != responses(start(inputs, "--run.seed=2"), run.probe_problems, 3)


def test_problems_of_equal_text_draw_their_own_responses(run: TrainingRun) -> None:
    twins = [replace(run.probe_problems[0], id=name) for name in ("one", "other")]
    one, other = responses(run, twins, 3)
    assert one != other


def test_one_problem_several_times_in_a_batch_draws_a_response_each(run: TrainingRun) -> None:
    drawn = responses(run, [run.probe_problems[0]] * 4, 40)
    assert len(set(drawn)) == 4


@pytest.mark.parametrize("shares", [(1, 3), (2, 2), (1, 1, 1, 1)])
def test_responses_do_not_depend_on_how_a_batch_is_shared_out(run: TrainingRun, shares: tuple[int, ...]) -> None:
    problems = [run.probe_problems[0], run.probe_problems[0], run.probe_problems[1], run.probe_problems[1]]
    first, parts = 0, list[Sequence[int]]()
    for share in shares:
        parts += responses(run, problems[first : first + share], 12 + first)
        first += share
    assert parts == responses(run, problems, 12)


def test_an_update_draws_at_its_places_in_the_stream(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, places = start(inputs, "--data.batch=4", "--rollout.max_new_tokens=1"), list[int]()
    rollout = run.rollout
    monkeypatch.setattr(run, "rollout", lambda problems, first: places.append(first) or rollout(problems, first))
    run.service.observe(run.probe(Finished(0), START)[0])
    with Heartbeat(run.config.parallel.timeout_minutes) as heartbeat:
        for update in (0, 1, 2):
            loop.train_step(run, update, heartbeat)
    assert [place for place in places if place >= 0] == [0, 4, 8]


PASSES: dict[str, Callable[[TrainingRun], object]] = {
    "a rollout": lambda run: run.rollout(run.probe_problems, 0),
    "the probe": lambda run: run.probe(Finished(0), START),
    "a measurement": lambda run: measure_step(
        run.model, run.teacher, run.examples(rollouts(run), run.contexts(rollouts(run), ALPHA)), run.divergence, 64
    ),
    "the teacher's pass": lambda run: distill_step(
        run.optimization.wrapped,
        run.model,
        run.teacher,
        run.examples(rollouts(run), run.contexts(rollouts(run), ALPHA)),
        run.divergence,
        64,
    ),
}


@pytest.mark.parametrize("what", PASSES)
def test_an_error_amid_a_pass_leaves_every_module_in_its_mode(what: str, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class SomeError(Exception):
        pass

    def fail(*_: object, **__: object) -> None:
        assert not run.model.training
        raise SomeError

    run = start(inputs)
    run.model.train()
    next(module for name, module in run.model.named_modules() if name.endswith("layers.1")).eval()
    before = [module.training for module in run.model.modules()]
    monkeypatch.setattr(ModelChunk, "forward", fail)
    monkeypatch.setattr(Decoder, "forward", fail)
    with pytest.raises(SomeError):
        PASSES[what](run)
    assert set(before) == {True, False}
    assert [module.training for module in run.model.modules()] == before


def test_a_response_with_the_references_answer_is_answered(run: TrainingRun) -> None:
    assert all(run.answered(rollout) for rollout in rollouts(run))


def test_a_response_with_another_answer_is_not_answered(run: TrainingRun) -> None:
    first = rollouts(run)[0]
    wrong = next(p for p in run.probe_problems if p.answer != first.problem.answer)
    assert not run.answered(replace(first, response_ids=run.renderer.reference(wrong)))
