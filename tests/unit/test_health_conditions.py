"""Alarms set off by what really causes them: texts that were measured, and controllers that are stuck. test_health_run.py has training."""

from collections.abc import Iterator, Sequence

import pytest
import torch

from megatron_atesd.config import ExposureConfig, PromptConfig
from megatron_atesd.data.prompts import PromptRenderer
from megatron_atesd.exposure.modes import Mode, make_mode
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.records import Problem, Rollout, TeacherContext, UpdateStats
from megatron_atesd.train.metrics import rollout_metrics
from tests.support.health_series import WELL, WINDOW, Metrics, config_of, names_of
from tests.support.small_tokenizers import CHATML, tokenizer

PROBLEM = Problem("1", "What is 3 + 4?", "3 + 4 = 7", "7")
PLAIN = "Adding 3 and 4 gives 7. The answer is 7."
CAREFUL = "Adding gives 8. Wait, let me check. Hmm, 3 and 4 are 7. However, perhaps check again. The answer is 7."
LEAKING = "According to the reference solution, the answer is 7."


@pytest.fixture(scope="module")
def renderer() -> Iterator[PromptRenderer]:
    with parallel_session():
        yield PromptRenderer(tokenizer(CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_end|>"), PromptConfig())


def measured(renderer: PromptRenderer, texts: Sequence[str], problem: Problem = PROBLEM) -> Metrics:
    """The metrics of an update with these responses, all else well."""
    encode = renderer._tokenizer.encode
    prompt = renderer.student(problem)
    rollouts = [Rollout(problem, prompt, (*encode(text), renderer.stop_ids[0]), truncated=False) for text in texts]
    contexts = [TeacherContext(prompt, 0, 1)] * len(texts)
    return WELL | rollout_metrics(rollouts, contexts, lambda _: True, renderer.decode)


def test_responses_that_speak_of_the_reference_set_off_leakage(renderer: PromptRenderer) -> None:
    plain, leaking = measured(renderer, [PLAIN] * 8), measured(renderer, [PLAIN] * 7 + [LEAKING])
    assert (plain["rollout/leakage"], leaking["rollout/leakage"]) == (0.0, 0.125)
    config = config_of(exploration_loss=None, length_drift=None)
    assert names_of(config, [plain] * 9 + [leaking] * 4) == [(10, "leakage")]


def test_responses_to_a_problem_that_speaks_of_a_reference_set_off_nothing(renderer: PromptRenderer) -> None:
    problem = Problem("2", "A student's work, and the reference solution: 3 + 4 = 8. Who is right?", "7", "7")
    assert measured(renderer, [LEAKING] * 8, problem)["rollout/leakage"] == 0.0


def test_responses_that_no_longer_check_set_off_exploration_loss(renderer: PromptRenderer) -> None:
    careful, plain = measured(renderer, [CAREFUL] * 8), measured(renderer, [PLAIN] * 8)
    tokens = len(renderer._tokenizer.encode(CAREFUL)) + 1
    assert careful["rollout/exploration"] == pytest.approx(5 / tokens * 1000)
    assert plain["rollout/exploration"] == 0.0
    config = config_of(length_drift=None)
    assert [name for _, name in names_of(config, [careful] * WINDOW + [plain] * WINDOW)] == ["exploration_loss"]
    assert names_of(config, [careful] * 3 * WINDOW) == names_of(config, [plain] * 3 * WINDOW) == []


def drive(exposure: ExposureConfig, updates: int, kl: float = 0.1, skipped: int = 0) -> list[Metrics]:
    """Metrics of a run with this exposure; progress is the better the higher α. Of every `skipped` updates the last is skipped."""
    torch.manual_seed(0)
    mode: Mode = make_mode(exposure, updates, seed=1)
    progress, series = 2.0, list[Metrics]()
    mode.observe(UpdateStats(0, mode.propose(0), kl, 0.1, 0.9, progress, progress, -1.0))
    for step in range(updates):
        chosen = mode.propose(step)
        progress -= 0.01 * chosen.alpha
        told: dict[str, float] = {}
        if not (skipped and step % skipped == skipped - 1):
            told = mode.observe(UpdateStats(step + 1, chosen, kl, 0.1, 0.9, progress, progress, -1.0))
        series.append(WELL | {"exposure/alpha": chosen.alpha} | told)
    return series


LEARNED = ExposureConfig(mode="learned", hold=2, lookahead=3, batch=2)


def test_a_policy_driven_to_the_bound_sets_off_controller_saturated() -> None:
    """By a learning rate that is too high, and no entropy to keep."""
    eager = ExposureConfig(**{**vars(LEARNED), "lr": 0.5, "entropy_coef": 0.0, "grounding": "off", "normalize_terms": True})
    assert {name for _, name in names_of(config_of(eager), drive(eager, 150))} == {"controller_saturated"}


def test_a_policy_with_its_default_settings_does_not() -> None:
    assert names_of(config_of(LEARNED), drive(LEARNED, 60)) == []


def test_a_target_out_of_reach_sets_off_controller_saturated() -> None:
    target = ExposureConfig(mode="target_kl", target_kl=0.05, start=0.5, hold=2)
    assert [name for _, name in names_of(config_of(target), drive(target, 100, kl=0.2))] == ["controller_saturated"]
    assert names_of(config_of(target), drive(target, 100, kl=0.05)) == []


def test_a_policy_whose_decisions_are_all_dropped_sets_off_controller_idle() -> None:
    """A skipped update in each look-ahead: nothing is ever judged."""
    assert [name for _, name in names_of(config_of(LEARNED), drive(LEARNED, 60, skipped=3))] == ["controller_idle"]


def test_a_policy_that_loses_a_decision_now_and_then_does_not() -> None:
    assert names_of(config_of(LEARNED), drive(LEARNED, 60, skipped=20)) == []
