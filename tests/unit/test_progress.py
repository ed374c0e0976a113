"""What each progress signal measures, on a real TrainingRun: likelihoods by transformers, weights by hand, responses by their seeds."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3ForCausalLM

from megatron_atesd.config import ExposureConfig, load_config, validate_exposure
from megatron_atesd.data.notice import warn_once
from megatron_atesd.distill.likelihood import ScoredText, mean_nll, weighted_nll
from megatron_atesd.distill.step import measure_step
from megatron_atesd.errors import ConfigError, DataError
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.records import Exposure, Problem, Rollout
from megatron_atesd.train import training_run
from megatron_atesd.train.checks import check_before_work
from megatron_atesd.train.own_responses import OwnResponses, weighted
from megatron_atesd.train.progress import Finished, OwnNLL, ReferenceNLL, TrainAccuracy, warn_of_bias
from megatron_atesd.train.training_run import TrainingRun
from tests.support.small_run import arguments, save_inputs

SAMPLES = 3


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = save_inputs(tmp_path_factory.mktemp("inputs"))
    with parallel_session():
        yield folder


@pytest.fixture
def half_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model solves nothing: call right what begins with an even token."""
    monkeypatch.setattr(training_run, "graded", lambda rollouts, renderer: [is_even(r) for r in rollouts])


def is_even(rollout: Rollout) -> bool:
    return rollout.response_ids[0] % 2 == 0


def start(inputs: Path, progress: str, *overrides: str) -> TrainingRun:
    given = (f"--exposure.progress={progress}", f"--exposure.probe_samples={SAMPLES}", "--parallel.tensor=1", *overrides)
    config = load_config(arguments(inputs, inputs / "run", *given))
    return TrainingRun(config, check_before_work(config, 1))


def plain_nll(run: TrainingRun, prompt: Sequence[int], response: Sequence[int]) -> float:
    """Summed NLL of one response by transformers."""
    model = Qwen3ForCausalLM.from_pretrained(run.hf_folder).eval()
    with torch.no_grad():
        logits_SV = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    return -float(torch.log_softmax(logits_SV, dim=-1)[range(len(response)), list(response)].double().sum())


def test_weighted_nll_is_the_weighted_sum_of_each_texts_own(inputs: Path) -> None:
    run = start(inputs, "probe_nll")
    weights = [0.5, -2.0, 0.0, 1.25, 1e-3]
    pairs = [(run.renderer.student(p), run.renderer.reference(p)) for p in run.probe_problems[: len(weights)]]
    texts = [ScoredText(*pair, weight) for pair, weight in zip(pairs, weights, strict=True)]
    expected = sum(weight * plain_nll(run, *pair) for pair, weight in zip(pairs, weights, strict=True))
    for tokens in (1, 100, 8192):
        assert weighted_nll(run.model, texts, tokens) == pytest.approx(expected, rel=1e-5)


def test_mean_nll_is_over_tokens(inputs: Path) -> None:
    run = start(inputs, "probe_nll")
    pairs = [(run.renderer.student(p), run.renderer.reference(p)) for p in run.probe_problems]
    expected = sum(plain_nll(run, *pair) for pair in pairs) / sum(len(reference) for _, reference in pairs)
    assert mean_nll(run.model, pairs, 64) == pytest.approx(expected, rel=1e-5)


def rollout(problem: str, ids: tuple[int, ...]) -> Rollout:
    return Rollout(Problem(problem, problem, "", ""), (1,), ids, False)


def test_each_problem_counts_alike_and_within_it_each_token_drawn() -> None:
    drawn = [rollout("a", (5, 6)), rollout("b", (7,)), rollout("a", (5, 6)), rollout("a", (8, 9, 9, 9))]
    assert [(r.response_ids, weight) for r, weight in weighted(drawn)] == [((5, 6), 2 / 8 / 2), ((8, 9, 9, 9), 1 / 8 / 2), ((7,), 1 / 2)]


def test_the_most_frequent_responses_are_kept() -> None:
    drawn = [rollout("a", ids) for ids in ((1,), (2,), (3,), (3,), (2,), (3,))]
    assert [r.response_ids for r, _ in weighted(drawn, kept=2)] == [(3,), (2,)]


def test_a_problem_without_a_correct_response_is_left_out_with_its_wrong_ones() -> None:
    own = OwnResponses([rollout("a", (1,)), rollout("b", (2,)), rollout("a", (3,)), rollout("b", (4,))], [True, False, False, False])
    assert [r.response_ids for r, _ in own.correct()] == [(1,)]
    assert [r.response_ids for r, _ in own.wrong()] == [(3,)]
    assert own.account(2) == "1 of 2 probe problems have a correct response among 2 of the start model; the others are left out"


def test_a_run_without_any_correct_response_is_told_what_to_do(inputs: Path) -> None:
    with pytest.raises(DataError, match=r"none of the 8 probe problems has a correct response among 3 .*exposure\.probe_samples"):
        start(inputs, "probe_own").gather()


@pytest.mark.usefixtures("half_right")
def test_a_response_that_was_cut_is_not_right(inputs: Path) -> None:
    run = start(inputs, "probe_own")
    run.gather()
    assert run.own.right == [is_even(r) and not r.truncated for r in run.own.rollouts]
    assert any(is_even(r) and r.truncated for r in run.own.rollouts)


def texts_of(run: TrainingRun) -> list[ScoredText]:
    assert isinstance(run.progress, ReferenceNLL | OwnNLL)
    return run.gradient_signal.texts([])


@pytest.mark.usefixtures("half_right")
@pytest.mark.parametrize("progress", ["probe_nll", "probe_own", "probe_margin"])
def test_progress_is_the_weighted_nll_of_its_texts(progress: str, inputs: Path) -> None:
    run = start(inputs, progress, "--rollout.max_new_tokens=48")
    run.gather()
    stats, metrics = run.probe(Finished(0), Exposure(1.0, -1))
    expected = sum(text.weight * plain_nll(run, text.prompt, text.response) for text in texts_of(run))
    assert stats.progress == pytest.approx(expected, rel=1e-4)
    assert metrics["probe/progress"] == stats.progress


@pytest.mark.usefixtures("half_right")
def test_the_margin_is_own_less_a_share_of_wrong(inputs: Path) -> None:
    run = start(inputs, "probe_margin", "--rollout.max_new_tokens=48", "--exposure.wrong_weight=0.25")
    run.gather()
    stats, metrics = run.probe(Finished(0), Exposure(1.0, -1))
    assert stats.progress == pytest.approx(metrics["probe/own_nll"] - 0.25 * metrics["probe/wrong_nll"])
    assert metrics["probe/own_nll"] == pytest.approx(start_with(run, 0.0).measure(Finished(0))[0])
    assert sum(text.weight * len(text.response) for text in texts_of(run)) == pytest.approx(1 - 0.25)  # both are means over tokens


def start_with(run: TrainingRun, wrong_weight: float) -> OwnNLL:
    return OwnNLL(run.own, run.score, wrong_weight)


@pytest.mark.usefixtures("half_right")
def test_grounding_on_own_responses_reads_them_after_the_exposed_teachers_prompt(inputs: Path) -> None:
    run = start(inputs, "probe_nll", "--exposure.grounding=own", "--rollout.max_new_tokens=48")
    run.gather()
    prompts = {p.id: run.renderer.teacher(p, 0.4).prompt_ids for p in run.probe_problems}
    expected = -sum(weight * plain_nll(run, prompts[r.problem.id], r.response_ids) for r, weight in run.own.correct())
    assert run._grounding(0.4) == pytest.approx(expected, rel=1e-4)


@pytest.mark.usefixtures("half_right")
def test_probe_accuracy_draws_anew_after_each_update_and_alike_at_the_same(inputs: Path) -> None:
    run = start(inputs, "probe_accuracy")
    drawn = [[r.response_ids for r in run._fresh_rollouts(update)] for update in (1, 2, 1)]
    assert drawn[0] == drawn[2]
    assert all(one != other for one, other in zip(drawn[0], drawn[1], strict=True))
    stats, metrics = run.probe(Finished(1), Exposure(1.0, 0))
    assert metrics["probe/accuracy"] == -(stats.progress or 0) == sum(is_even(r) for r in run._fresh_rollouts(1)) / 8


def test_fresh_responses_have_places_of_their_own(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, places = start(inputs, "probe_accuracy", "--rollout.max_new_tokens=48", "--exposure.grounding=own"), list[int]()
    responses = run._responses
    monkeypatch.setattr(training_run, "graded", lambda rollouts, renderer: [True] * len(rollouts))
    monkeypatch.setattr(
        run, "_responses", lambda problems, first: places.extend(range(first, first + len(problems))) or responses(problems, first)
    )
    run.gather()
    for update in (0, 1, 2):
        run._fresh_rollouts(update)
    assert len(set(places)) == len(places) == 8 * (SAMPLES + 3)
    assert max(places) < 0


def test_train_accuracy_is_of_the_updates_rollouts_at_each_update(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four, three have the reference's answer, one of them in other words; the probe itself is not due."""
    run = start(inputs, "train_accuracy", "--exposure.mode=fixed")
    right = [Rollout(p, run.renderer.student(p), run.renderer.reference(p), False) for p in run.probe_problems[:4]]
    wrong_answer = replace(right[0].problem, answer="no number")
    rollouts = [replace(right[0], problem=wrong_answer), *right[1:3], replace(right[3], problem=spelled_out(right[3].problem))]
    result = measure_step(run.model, run.teacher, run.examples(rollouts, run.contexts(rollouts, 1.0)), run.divergence, 64)
    stats, metrics = run.probe(Finished(1, result, rollouts), Exposure(1.0, -1))
    assert stats.progress == metrics["probe/progress"] == -0.75
    assert stats.probe_nll is None
    assert "probe/nll" not in metrics


def spelled_out(problem: Problem) -> Problem:
    return replace(problem, answer=f"{problem.answer}.0")


@pytest.mark.parametrize(("every", "measured"), [("null", [0, 10, 20, 25]), ("4", [0, 4, 8, 12, 16, 20, 24, 25]), ("1", [*range(26)])])
def test_the_probe_is_due_every_so_often_at_the_start_and_at_the_end(
    every: str, measured: list[int], inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(inputs, "probe_nll", "--exposure.mode=fixed", "--run.updates=25", f"--exposure.probe_every={every}")
    monkeypatch.setattr(run.references, "mean", lambda pairs: 1.0)
    assert [update for update in range(26) if run.probe(Finished(update), Exposure(1.0, -1))[0].progress == 1.0] == measured


def test_weights_are_whole_after_an_update_that_no_probe_follows(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next pass may be a rollout in which a rank has no prompt, or a save."""
    run, events = start(inputs, "probe_nll", "--exposure.mode=fixed"), list[str]()
    monkeypatch.setattr(type(run.optimization), "weights_ready", lambda self: events.append("whole"))
    monkeypatch.setattr(run.references, "mean", lambda pairs: events.append("pass") or 1.0)
    for update in (0, 1):
        run.probe(Finished(update), Exposure(1.0, -1))
    assert events == ["pass", "whole"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"probe_every": 2}, "set it to 1 or null, or exposure.progress to train_accuracy or train_kl, and exposure.grounding to off"),
        ({"probe_every": 2, "progress": "train_accuracy"}, "exposure.grounding to off"),
        ({"probe_every": 2, "mode": "posterior"}, "set it to 1 or null, or exposure.progress to train_accuracy or train_kl"),
        ({"mode": "aligned", "progress": "probe_accuracy"}, "choose probe_nll, probe_own, probe_margin or train_accuracy"),
        ({"probe_every": 2, "progress": "train_accuracy", "grounding": "off"}, ""),
        ({"probe_every": 2, "progress": "train_kl", "mode": "posterior"}, ""),
        ({"probe_every": 20, "mode": "random"}, ""),
    ],
)
def test_settings_that_leave_a_controller_without_measurements_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) if said else nullcontext():
        validate_exposure(ExposureConfig(**settings), 100)


def test_own_responses_of_an_earlier_checkpoint_are_one_a_problem_and_ungraded(inputs: Path) -> None:
    run = start(inputs, "probe_kl")
    run.gather()
    old = {"probe_responses": run.own.state_dict()["probe_responses"]}
    again = OwnResponses()
    again.load_state_dict(old, run.probe_problems, run.renderer)
    assert (again.rollouts, again.right) == (run.own.rollouts, [])


@pytest.mark.parametrize(
    ("mode", "progress", "warned"), [("learned", "probe_nll", True), ("fixed", "probe_nll", False), ("learned", "probe_own", False)]
)
def test_a_controller_that_follows_the_references_is_warned_once(
    mode: Any, progress: Any, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    warn_once.cache_clear()
    for _ in range(2):
        warn_of_bias(ExposureConfig(mode=mode, progress=progress))
    assert capsys.readouterr().err.count("falls fastest at the worst exposure") == warned


def test_the_gradient_of_training_accuracy_is_the_policy_gradient() -> None:
    """Advantages against the batch's mean, over the responses of all data ranks; one that was cut is left out."""
    theirs = [rollout("a", (1,)), rollout("b", (2,)), replace(rollout("x", (9,)), truncated=True), rollout("c", (3,)), rollout("d", (4,))]
    signal = TrainAccuracy(gather=lambda mine: [*mine, *theirs[2:]], grade=lambda ended: [True, False, False, False])
    texts = signal.texts(theirs[:2])
    assert [(text.prompt, text.response, text.weight) for text in texts] == [
        ((1,), (1,), 0.75 / 4),
        ((1,), (2,), -0.25 / 4),
        ((1,), (3,), -0.25 / 4),
        ((1,), (4,), -0.25 / 4),
    ]


def test_where_all_are_right_the_policy_gradient_is_zero() -> None:
    signal = TrainAccuracy(gather=list, grade=lambda ended: [True] * len(ended))
    assert {text.weight for text in signal.texts([rollout("a", (1,)), rollout("b", (2,))])} == {0.0}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["--exposure.clip_low=0.5", "--exposure.clip_high=0.5"], "leaves exposure.mode aligned no choice"),
        (["--data.batch=1"], "data.batch is 1, and one response"),
        (["--optimizer.optimizer=sgd"], "by a step of Adam"),
        (["--optimizer.lr=0"], "by a step of Adam"),
        (["--optimizer.use_precision_aware_optimizer=true"], "use_precision_aware_optimizer is true"),
    ],
)
def test_what_aligned_exposure_cannot_work_with_is_refused(settings: list[str], said: str, inputs: Path) -> None:
    aligned = ["--exposure.mode=aligned", "--exposure.progress=train_accuracy", "--parallel.tensor=1"]
    with pytest.raises(ConfigError, match=said):
        check_before_work(load_config(arguments(inputs, inputs / "run", *aligned, *settings)), 1)


def test_a_choice_without_a_gradient_is_said_once(inputs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = start(inputs, "train_accuracy", "--exposure.mode=aligned", "--rollout.max_new_tokens=1")
    for _ in range(2):
        assert run.alignment(run.rollout(run.probe_problems, 0)) is None
    assert capfd.readouterr().err.count("had no gradient") == 1
