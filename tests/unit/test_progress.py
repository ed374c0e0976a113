"""What each progress signal measures, on a real TrainingRun: likelihoods by transformers, weights by hand, responses by their seeds."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from transformers import Qwen3ForCausalLM

from megatron_atesd.config import load_config
from megatron_atesd.distill.likelihood import ScoredText, mean_nll, weighted_nll
from megatron_atesd.errors import DataError
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.records import Exposure, Problem, Rollout
from megatron_atesd.train import training_run
from megatron_atesd.train.checks import check_before_work
from megatron_atesd.train.own_responses import OwnResponses, weighted
from megatron_atesd.train.progress import Finished, OwnNLL, ReferenceNLL
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
    return run.progress.texts()


@pytest.mark.usefixtures("half_right")
@pytest.mark.parametrize("progress", ["probe_nll", "probe_own", "probe_margin"])
def test_progress_is_the_weighted_nll_of_its_texts(progress: str, inputs: Path) -> None:
    run = start(inputs, progress, "--rollout.max_new_tokens=48")
    run.gather()
    stats, metrics = run.probe(Finished(0), Exposure(1.0, -1))
    expected = sum(text.weight * plain_nll(run, text.prompt, text.response) for text in texts_of(run))
    assert stats.progress == pytest.approx(expected, rel=1e-4)
    assert metrics["probe/progress"] == stats.progress
