"""The controller: when it decides, when and how it learns, and that its state continues exactly."""

import io
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_atesd.config import ExposureConfig
from megatron_atesd.errors import CheckpointError
from megatron_atesd.exposure import policy
from megatron_atesd.exposure.controller import Controller, Decision
from megatron_atesd.records import Exposure, UpdateStats

CONFIG = ExposureConfig(hold=2, lookahead=3, batch=2, warmup_updates=3, warmup_exposure=0.9, hidden=8)


def stats(update: int, exposure: Exposure, probe_nll: float | None = None, grounding: float | None = None) -> UpdateStats:
    nll = 2.0 - 0.01 * update + 0.003 * math.sin(5 * update) if probe_nll is None else probe_nll
    grounded = -1.0 + 0.1 * math.cos(update) if grounding is None else grounding
    return UpdateStats(update, exposure, 0.02 + 0.001 * update, 0.1, 0.8, nll, nll, grounded)


def drive(controller: Controller, first: int, last: int) -> list[Any]:
    """Proposals and metrics of updates first + 1 … last."""
    seen: list[Any] = []
    for step in range(first, last):
        exposure = controller.propose(step)
        seen += [exposure, controller.observe(stats(step + 1, exposure))]
    return seen


def started(config: ExposureConfig, seed: int = 5) -> Controller:
    controller = Controller(config, updates=40, seed=seed)
    controller.observe(stats(0, controller.propose(0)))
    return controller


def learned_gradients(
    before: dict[str, torch.Tensor], decisions: list[Decision], rewards: list[float], weights: list[float], update: int
) -> dict[str, torch.Tensor]:
    """Gradients of the paper's loss at parameters `before`: weighted, batch-standardised advantages of the decisions' samples."""
    state_NF, alpha_N, reward_N, weight_N = (
        torch.tensor(values, dtype=torch.float64)
        for values in ([d.features for d in decisions], [d.sample for d in decisions], rewards, weights)
    )
    advantage_N = weight_N * (reward_N - reward_N.mean()) / (reward_N.std(correction=0) + 1e-6)
    target = -0.1 + (-0.8 + 0.1) * update / 40
    leaves = {name: value.detach().clone().requires_grad_() for name, value in before.items()}
    policy.policy_loss(leaves, state_NF, alpha_N, advantage_N, target, 0.01, None).backward()
    return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def snapshot(controller: Controller) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in controller.parameters.items()}


def assert_learned(controller: Controller, expected: dict[str, torch.Tensor]) -> None:
    """The gradients of the latest policy update are `expected`, and not all 0."""
    got = {name: value.grad for name, value in controller.parameters.items()}
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)
    assert any(float(gradient.abs().max()) > 1e-3 for gradient in expected.values())


def reload(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_decisions_start_at_the_windows_after_the_warm_up():
    numbers = [proposal.decision_id for proposal in drive(started(CONFIG), 0, 9)[::2]]
    assert numbers == [-1, -1, -1, 0, 0, 1, 1, 2, 2]


def test_the_warm_up_uses_its_own_exposure():
    assert [proposal.alpha for proposal in drive(started(CONFIG), 0, 3)[::2]] == [0.9, 0.9, 0.9]


def test_one_exposure_holds_through_a_window_and_the_next_window_has_another():
    alphas = [proposal.alpha for proposal in drive(started(CONFIG), 0, 7)[::2]][3:]
    assert alphas[0] == alphas[1] != alphas[2] == alphas[3]


def test_asking_twice_changes_nothing():
    asked, once = started(CONFIG), started(CONFIG)
    for _ in range(3):
        asked.propose(3)
    assert drive(asked, 3, 20) == drive(once, 3, 20)


def test_statistics_that_come_late_count_for_the_decision_that_they_carry():
    """Each update is observed only after the next two have been asked for: beside the usual order, where hold windows end in between."""
    usual, late = started(CONFIG), started(CONFIG)
    drive(usual, 0, 3)
    drive(late, 0, 3)
    exposures = [late.propose(step) for step in (3, 4, 5)]
    expected = drive(usual, 3, 5)[1::2]
    assert exposures[0] == exposures[1] != exposures[2]
    assert [late.observe(stats(step + 1, exposures[step - 3])) for step in (3, 4)] == expected
    assert late.training == usual.training


def test_a_decision_judged_before_its_window_ends_is_still_the_updates_own():
    metrics = drive(started(replace(CONFIG, hold=6, lookahead=2)), 0, 9)[1::2]
    assert {(m["exposure/alpha"], m["exposure/a"]) for m in metrics[3:]} == {(metrics[3]["exposure/alpha"], metrics[3]["exposure/a"])}


def test_the_first_decision_has_mean_one_half():
    metrics = drive(started(CONFIG), 0, 4)[-1]
    assert metrics["exposure/mean"] == pytest.approx(0.5, abs=1e-12)
    assert metrics["exposure/a"] == pytest.approx(1.693, abs=1e-3)
    assert metrics["exposure/b"] == pytest.approx(1.693, abs=1e-3)
    assert metrics["exposure/entropy"] == pytest.approx(-0.077, abs=1e-3)


def test_a_reward_is_known_lookahead_updates_after_its_decision():
    known = [step + 1 for step, metrics in enumerate(drive(started(CONFIG), 0, 12)[1::2]) if "controller/reward" in metrics]
    assert known == [6, 8, 10, 12]  # decisions at 3, 5, 7, 9


def test_a_reward_is_told_with_the_alpha_of_its_own_decision():
    seen = drive(started(CONFIG), 0, 12)
    decided = {proposal.decision_id: proposal.alpha for proposal in seen[::2] if proposal.decision_id >= 0}
    told = [metrics["controller/alpha"] for metrics in seen[1::2] if "controller/reward" in metrics]
    assert told == [decided[number] for number in range(4)]
    assert len(set(told)) == 4


def test_the_reward_is_that_of_the_method():
    config = replace(CONFIG, warmup_updates=0, discount=0.5, normalize_terms=False, grounding_weight=0.1)
    controller = Controller(config, updates=40, seed=1)
    metrics: dict[str, float] = {}
    controller.observe(stats(0, controller.propose(0), 2.0, math.nan))
    for step, (nll, grounding) in enumerate([(1.5, -1.0), (1.75, -2.0), (1.25, -4.0)]):
        metrics = controller.observe(stats(step + 1, controller.propose(step), nll, grounding))
    assert metrics["controller/learning_progress"] == pytest.approx(0.625)
    assert metrics["controller/grounding"] == pytest.approx(-3.0 / 1.75)
    assert metrics["controller/reward"] == pytest.approx(0.625 - 0.3 / 1.75)


def test_the_logged_reward_is_in_nats_at_every_update():
    judged = [metrics for metrics in drive(started(CONFIG), 0, 20)[1::2] if "controller/reward" in metrics]
    terms = [(metrics["controller/learning_progress"], metrics["controller/grounding"]) for metrics in judged]
    assert [metrics["controller/reward"] for metrics in judged] == pytest.approx(
        [learning + 0.1 * grounding for learning, grounding in terms]
    )


def test_learning_takes_terms_by_the_spread_of_the_rewards_so_far():
    controller = started(replace(CONFIG, replay=0, advantage="batch"))
    judged = [metrics for metrics in drive(controller, 0, 12)[1::2] if "controller/reward" in metrics]
    learning, grounding = (
        torch.tensor([metrics[f"controller/{term}"] for metrics in judged], dtype=torch.float64)
        for term in ("learning_progress", "grounding")
    )
    reward_N = (learning / learning.std(correction=0) + 0.1 * grounding / grounding.std(correction=0))[-2:]
    expected = (reward_N[-1] - reward_N.mean()) / (reward_N.std(correction=0) + 1e-6)
    assert judged[-1]["controller/advantage"] == pytest.approx(expected.item())


@pytest.mark.parametrize("normalised", [True, False])
def test_only_normalised_terms_learn_the_same_from_another_unit_of_grounding(normalised: bool):
    config = replace(CONFIG, normalize_terms=normalised)
    alphas: list[list[float]] = []
    for unit in (1.0, 64.0):
        controller = started(config)
        alphas.append([])
        for step in range(30):
            exposure = controller.propose(step)
            alphas[-1].append(exposure.alpha)
            seen = stats(step + 1, exposure)
            assert seen.grounding is not None
            controller.observe(replace(seen, grounding=unit * seen.grounding))
    assert (alphas[0] == pytest.approx(alphas[1], abs=1e-9)) is normalised


def test_the_policy_learns_when_a_batch_is_judged():
    updates = [metrics["controller/updates"] for metrics in drive(started(CONFIG), 0, 14)[1::2]]
    assert updates == [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2]


def test_the_first_policy_update_is_adam_on_the_papers_loss():
    config = replace(CONFIG, replay=0)
    controller = started(config)
    drive(controller, 0, 7)
    before = {name: value.detach().clone().requires_grad_() for name, value in controller.parameters.items()}
    drive(controller, 7, 8)
    decisions = controller.judged
    state_NF, alpha_N = (
        torch.tensor(values, dtype=torch.float64) for values in zip(*((d.features, d.sample) for d in decisions), strict=True)
    )
    low, high = sorted(range(2), key=lambda j: controller._rewards()[j])
    advantage_N = torch.zeros(2, dtype=torch.float64)
    advantage_N[low], advantage_N[high] = -1.0, 1.0
    target = -0.1 + (-0.8 + 0.1) * 8 / 40
    policy.policy_loss(before, state_NF, alpha_N, advantage_N, target, 0.01, None).backward()
    adam = torch.optim.Adam(before.values(), lr=config.lr)
    adam.step()
    for name, value in controller.parameters.items():
        torch.testing.assert_close(value, before[name], rtol=1e-5, atol=1e-8)


def test_replay_learns_again_from_older_decisions():
    plain, replayed = started(replace(CONFIG, replay=0)), started(replace(CONFIG, replay=16))
    assert drive(plain, 0, 9) == drive(replayed, 0, 9)  # the first batch has no older decisions
    assert drive(plain, 9, 20) != drive(replayed, 9, 20)


def test_a_decision_without_its_baseline_is_dropped():
    controller = Controller(replace(CONFIG, warmup_updates=0), updates=40, seed=1)  # update 0 is never observed
    known = [step + 1 for step, metrics in enumerate(drive(controller, 0, 6)[1::2]) if "controller/reward" in metrics]
    assert known == [5]


def test_decisions_that_outlast_the_training_stay_unjudged():
    controller = started(CONFIG)
    drive(controller, 0, 12)
    assert [decision.number for decision in controller.pending] == [4]


def test_the_exposure_in_force_is_clipped_but_not_the_sample():
    config = replace(CONFIG, clip_low=0.49, clip_high=0.51)
    controller = started(config)
    alphas = [proposal.alpha for proposal in drive(controller, 0, 20)[::2]][3:]
    assert set(alphas) <= {0.49, 0.51} | {decision.sample for decision in controller.judged + controller.pending}
    assert any(not 0.49 <= decision.sample <= 0.51 for decision in controller.judged)


def test_the_sample_is_learned_from_even_where_another_exposure_was_in_force():
    controller = started(replace(CONFIG, replay=0, clip_low=0.45, clip_high=0.55))
    drive(controller, 0, 7)
    before = snapshot(controller)
    drive(controller, 7, 8)
    decisions = controller.judged
    assert any(decision.sample != decision.alpha for decision in decisions)
    assert_learned(controller, learned_gradients(before, decisions, controller._rewards(), [1.0, 1.0], update=8))


def test_replayed_decisions_count_by_how_likely_they_still_are():
    controller = started(replace(CONFIG, replay=2, lr=0.5))
    drive(controller, 0, 11)
    before = snapshot(controller)
    drive(controller, 11, 12)  # the second policy update: two older decisions, two fresh ones
    weights = []
    for decision in controller.judged[:2]:
        a_N, b_N = policy.concentrations(before, torch.tensor([decision.features], dtype=torch.float64))
        sample, a, b = torch.tensor([decision.sample, decision.a, decision.b], dtype=torch.float64)
        now, then = (torch.distributions.Beta(*shape).log_prob(sample) for shape in ((a_N[0], b_N[0]), (a, b)))
        weights.append(min(2.0, (now - then).exp().item()))
    assert any(abs(weight - 1) > 0.1 for weight in weights)
    assert_learned(controller, learned_gradients(before, controller.judged, controller._rewards(), [*weights, 1.0, 1.0], update=12))


def test_a_decision_without_all_its_progress_is_dropped():
    """Update 7 is not measured: the decisions at 5 and 7 look at it."""
    controller, known = started(CONFIG), list[int]()
    for step in range(14):
        observed = stats(step + 1, controller.propose(step))
        metrics = controller.observe(replace(observed, progress=None) if step + 1 == 7 else observed)
        known += [step + 1] if "controller/reward" in metrics else []
    assert known == [6, 12, 14]  # decisions at 3, 9, 11


def test_without_grounding_the_reward_is_learning_progress():
    controller = started(replace(CONFIG, grounding="off"))
    judged = []
    for step in range(12):
        metrics = controller.observe(replace(stats(step + 1, controller.propose(step)), grounding=None))
        judged += [metrics] if "controller/reward" in metrics else []
    assert controller.policy_updates > 0
    assert [metrics["controller/reward"] for metrics in judged] == [metrics["controller/learning_progress"] for metrics in judged]


@pytest.mark.parametrize("advantage", ["batch", "ema"])
@pytest.mark.parametrize("stop", [2, 6, 7, 16])
def test_a_reloaded_state_continues_bit_for_bit(advantage: Any, stop: int):
    config = replace(CONFIG, advantage=advantage)
    original = started(config)
    drive(original, 0, stop)
    resumed = Controller(config, updates=40, seed=99)
    resumed.load_state_dict(reload(original.state_dict()))
    assert drive(resumed, stop, 40) == drive(original, stop, 40)
    assert all(torch.equal(resumed.parameters[name], original.parameters[name]) for name in original.parameters)


def test_a_saved_state_is_a_snapshot():
    controller = started(CONFIG)
    drive(controller, 0, 10)
    state = controller.state_dict()
    expected = drive(controller, 10, 40)
    for _ in range(2):  # loading leaves it unchanged too
        resumed = Controller(CONFIG, updates=40, seed=99)
        resumed.load_state_dict(state)
        assert drive(resumed, 10, 40) == expected


def test_a_state_of_another_policy_width_is_refused():
    with pytest.raises(CheckpointError, match=r"exposure\.hidden"):
        Controller(replace(CONFIG, hidden=9), 40, 1).load_state_dict(started(CONFIG).state_dict())


def test_observing_leaves_the_global_rng_alone():
    before = torch.get_rng_state()
    drive(started(CONFIG), 0, 12)
    assert torch.equal(torch.get_rng_state(), before)
