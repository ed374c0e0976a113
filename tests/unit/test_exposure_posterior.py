"""Mode posterior: its regression equals conditioning on everything at once, and what it plays follows from what it knows."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_atesd.config import ExposureConfig
from megatron_atesd.errors import CheckpointError
from megatron_atesd.exposure.modes import highest_exposure, make_mode
from megatron_atesd.exposure.posterior import PosteriorExposure, best_place, beta_around, value_of_knowing
from megatron_atesd.exposure.progress_model import DRIFT, DYNAMICS, NODES, SLOPE, ProgressModel, curve_prior, node_weights
from megatron_atesd.exposure.simulated_student import StudentModel
from megatron_atesd.exposure.simulation import simulate
from megatron_atesd.records import Exposure, UpdateStats

CONFIG = ExposureConfig(mode="posterior", hold=4)
QUIET = StudentModel(training_noise=1e-6, probe_noise=0.0, momentum=0.9)


def stats(update: int, exposure: Exposure, progress: float | None) -> UpdateStats:
    return UpdateStats(update, exposure, 0.02, 0.1, 0.8, progress, None, None)


def drive(mode: PosteriorExposure, first: int, last: int, progress: Callable[[int], float | None]) -> list[Any]:
    """Proposals and metrics of updates first + 1 … last."""
    seen: list[Any] = []
    for step in range(first, last):
        exposure = mode.propose(step)
        seen += [exposure, mode.observe(stats(step + 1, exposure, progress(step + 1)))]
    return seen


def wave(update: int) -> float:
    return 2.0 - 0.01 * update + 0.003 * math.sin(5 * update)


def started(config: ExposureConfig = CONFIG, updates: int = 100, seed: int = 5) -> PosteriorExposure:
    mode = PosteriorExposure(config, updates, seed)
    mode.observe(stats(0, mode.propose(0), wave(0)))
    return mode


def reload(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(left: Any, right: Any) -> bool:
    """Whether two states hold equal values, bit for bit."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
    return torch.equal(left, right) if isinstance(left, Tensor) else left == right


def by_conditioning(positions: Sequence[float], measured: dict[int, float]) -> tuple[Tensor, Tensor]:
    """Mean and covariance of f as one dense Gaussian over the whole history gives them; measured: ℓ by update.

    Every measurement but the first is written as a linear map of independent variables: trend, its changes, f, noise of each update and of
    each measurement; as a difference to the first one, so that the level's unknown start drops out.
    """
    prior_mean, prior_covariance = curve_prior()
    updates, times = len(positions), sorted(measured)
    curves, covariances, evidence = [], [], []
    for momentum, noise in DYNAMICS:
        # Columns: trend 1, its changes T, f N, update noise T, measurement noise T + 1.
        blocks = [1, updates, NODES, updates, updates + 1]
        trend, change, curve, shock, error = torch.eye(sum(blocks), dtype=torch.float64).split(blocks)
        velocity, level, levels = torch.zeros(sum(blocks)).double(), torch.zeros(sum(blocks)).double(), []
        levels.append(level)
        for t, position in enumerate(positions):
            slope = trend[0] + change[:t].sum(0)
            velocity = momentum * velocity + (1 - momentum) * (slope + node_weights(position) @ curve + shock[t])
            level = level - velocity
            levels.append(level)
        seen = torch.stack([levels[t] + error[t] for t in times])
        design = seen[1:] - seen[0]
        y = torch.tensor([measured[t] - measured[times[0]] for t in times[1:]], dtype=torch.float64)
        variances = [SLOPE**2] + [DRIFT**2] * updates + [0.0] * NODES + [1.0] * updates + [noise**2] * (updates + 1)
        prior = torch.diag(torch.tensor(variances, dtype=torch.float64))
        place = slice(1 + updates, 1 + updates + NODES)
        prior[place, place] = prior_covariance
        prior_of_all = torch.zeros(sum(blocks), dtype=torch.float64)
        prior_of_all[place] = prior_mean
        covariance = design @ prior @ design.T
        expected = design @ prior_of_all

        def fit(scale: Tensor, covariance: Tensor = covariance, expected: Tensor = expected, y: Tensor = y) -> Tensor:
            normal = torch.distributions.MultivariateNormal(scale * expected, scale**2 * covariance)
            return normal.log_prob(y)

        # The greatest likelihood over σ by bisection of its derivative in ln σ.
        low, high = -20.0, 10.0
        for _ in range(100):
            middle = torch.tensor((low + high) / 2, dtype=torch.float64, requires_grad=True)
            (slope,) = torch.autograd.grad(fit(middle.exp()), middle)
            low, high = (middle.item(), high) if slope > 0 else (low, middle.item())
        scale = torch.tensor(low, dtype=torch.float64).exp()
        gain = torch.linalg.solve(covariance, design @ prior[:, place]).T
        curves.append(scale * prior_mean + gain @ (y - scale * expected))
        covariances.append(scale**2 * (prior_covariance - gain @ design @ prior[:, place]))
        evidence.append(fit(scale))
    weight = torch.stack(evidence).softmax(0)
    mean = sum((w * curve for w, curve in zip(weight, curves, strict=True)), torch.zeros(NODES).double())
    spread = [c + torch.outer(curve - mean, curve - mean) for c, curve in zip(covariances, curves, strict=True)]
    return mean, sum((w * s for w, s in zip(weight, spread, strict=True)), torch.zeros(NODES, NODES).double())


@pytest.mark.parametrize("unmeasured", [(), (0, 1), (3, 4, 9)])
def test_the_filter_is_conditioning_on_all_measurements(unmeasured: tuple[int, ...]):
    generator = torch.Generator().manual_seed(3)
    positions = torch.rand(14, generator=generator, dtype=torch.float64).tolist()
    noise = torch.randn(15, generator=generator, dtype=torch.float64).tolist()
    measured = {t: 2.0 - 0.1 * t - 0.3 * sum(positions[:t]) + 0.2 * noise[t] for t in range(15) if t not in unmeasured}
    model = ProgressModel()
    for t in range(15):
        if t > 0:
            model.advance(positions[t - 1])
        if t in measured:
            model.measure(measured[t])
    mean, covariance = model.curve()
    expected_mean, expected_covariance = by_conditioning(positions, measured)
    torch.testing.assert_close(mean, expected_mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(covariance, expected_covariance, rtol=1e-9, atol=1e-9)


def test_f_between_nodes_is_linear_and_outside_as_at_the_edge():
    curve = torch.linspace(0, 1, NODES, dtype=torch.float64)
    assert [float(node_weights(p) @ curve) for p in (0.0, 0.37, 1.0, 1.5, -1.0)] == pytest.approx([0, 0.37, 1, 1, 0])


def test_the_prior_is_the_mean_and_covariance_of_random_peaks():
    """Of a million drawn peaks: middle uniform, depth uniform from .25 to 2, one of three widths."""
    generator = torch.Generator().manual_seed(1)
    middle, depth = (torch.rand(1_000_000, 1, generator=generator) for _ in range(2))
    width = torch.tensor([0.15, 0.3, 0.6])[torch.randint(3, (1_000_000, 1), generator=generator)]
    drawn = (0.25 + 1.75 * depth) * torch.exp(-((torch.linspace(0, 1, NODES) - middle) ** 2) / (2 * width**2))
    mean, covariance = curve_prior()
    torch.testing.assert_close(drawn.mean(0).double(), mean, rtol=0, atol=5e-3)
    torch.testing.assert_close(drawn.T.cov().double(), covariance, rtol=0, atol=5e-3)


def test_knowing_a_node_is_worth_the_expected_rise_of_the_best_mean():
    """Against a million draws of what one would believe after knowing the node."""
    mean, root = torch.tensor([0.0, 0.1, -0.2]).double(), torch.tensor([[0.5, 0, 0], [0.2, 0.4, 0], [-0.3, 0.1, 0.6]]).double()
    covariance = root @ root.T
    normal = torch.randn(1_000_000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for node, worth in enumerate(value_of_knowing(mean, covariance).tolist()):
        shift = covariance[:, node] / covariance[node, node].sqrt()
        drawn = (mean + normal[:, None] * shift).amax(1).mean().item() - 0.1
        assert worth == pytest.approx(drawn, abs=0.02)  # seven points cannot follow the kinks of the maximum more closely


def test_what_is_worth_knowing_is_played_only_while_there_is_something_to_gain():
    mean, covariance = torch.tensor([1.0, 0.0]).double(), torch.diag(torch.tensor([1e-6, 1.0])).double()
    places = [best_place(mean, covariance, worth, torch.Generator().manual_seed(0)) for worth in (20.0, 0.0)]
    assert places[0] == 1
    assert places[1] < 0.4  # the mean place of the best of 64 draws; N(0, 1) beats 1 in 16 % of them


@pytest.mark.parametrize("mean", [0.1, 0.5, 0.8])
def test_a_window_is_drawn_with_a_spread_of_a_twentieth(mean: float):
    a, b = beta_around(mean)
    beta = torch.distributions.Beta(torch.tensor(a), torch.tensor(b))
    assert (beta.mean.item(), beta.stddev.item()) == pytest.approx((mean, 0.05))


@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_no_density_grows_without_bound_at_an_edge(mean: float):
    assert min(beta_around(mean)) == pytest.approx(1.0, abs=0.05)
    assert min(beta_around(mean)) >= 1


def test_a_window_keeps_its_exposure_and_another_draws_anew():
    proposals = drive(started(), 0, 12, wave)[::2]
    assert [proposal.decision_id for proposal in proposals] == [0] * 4 + [1] * 4 + [2] * 4
    assert len({proposal.alpha for proposal in proposals}) == 3


def test_decisions_begin_after_the_warm_up_from_which_it_has_learned():
    mode = started(replace(CONFIG, warmup_updates=6, warmup_exposure=0.9))
    assert drive(mode, 0, 6, wave)[::2] == [Exposure(0.9, -1)] * 6
    assert mode.propose(6).decision_id == 0
    assert mode.model.count == 6


def test_the_same_seed_decides_the_same_and_another_does_not():
    runs = [drive(started(seed=seed), 0, 30, wave) for seed in (5, 5, 6)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("stop", [9, 12])
def test_a_saved_state_continues_bit_for_bit(stop: int):
    original = started()
    drive(original, 0, stop, wave)
    resumed = PosteriorExposure(CONFIG, 100, seed=77)
    resumed.load_state_dict(reload(original.state_dict()))
    assert drive(resumed, stop, 40, wave) == drive(original, stop, 40, wave)
    assert same(resumed.state_dict(), original.state_dict())


def test_a_saved_state_is_not_changed_by_what_follows():
    mode = started()
    drive(mode, 0, 9, wave)
    state = mode.state_dict()
    before = reload(state)
    drive(mode, 9, 20, wave)
    assert same(state, before)


def test_a_state_of_another_mode_is_refused():
    with pytest.raises(CheckpointError, match=r"random.*posterior"):
        started().load_state_dict(make_mode(ExposureConfig(mode="random"), 100, 1).state_dict())


def test_updates_that_measure_nothing_leave_the_curve_as_it_was():
    mode = started()
    drive(mode, 0, 20, wave)
    before = mode.model.curve()
    drive(mode, 20, 30, lambda _: None)
    torch.testing.assert_close(mode.model.curve(), before, rtol=1e-12, atol=1e-15)


def test_a_signal_that_never_changes_leaves_the_choice_to_the_prior():
    mode = started()
    seen = drive(mode, 0, 40, lambda _: wave(0))
    assert all(math.isfinite(value) for metrics in seen[1::2] for value in metrics.values())
    assert mode.model.curve()[0].argmax() == NODES // 2


@pytest.mark.parametrize("optimum", [0.2, 0.8])
def test_without_noise_it_ends_at_the_optimum(optimum: float):
    student = replace(QUIET, optimum=optimum)
    run = simulate(PosteriorExposure(CONFIG, 100, 1), [student], 100, 7)
    assert fmean(alpha for (alpha,) in run.alphas[-20:]) == pytest.approx(optimum, abs=0.1)


def test_evidence_moves_the_best_exposure_and_narrows_what_is_believed():
    mode = started(replace(CONFIG, hold=1), updates=200)
    first = drive(mode, 0, 1, wave)[1]
    level = wave(0)
    for step in range(1, 60):
        exposure = mode.propose(step)
        level -= 0.01 - 0.01 * abs(exposure.alpha - 0.9) + 1e-3 * math.sin(7 * step)
        metrics = mode.observe(stats(step + 1, exposure, level))
    scale = mode.model._scale().max().item()  # the first SD is in σ, the last in nats
    assert first["controller/posterior_best"] == 0.5
    assert metrics["controller/posterior_best"] >= 0.8
    assert metrics["controller/posterior_sd"] / scale < first["controller/posterior_sd"] / 2


def test_a_flat_student_never_saturates():
    flat = StudentModel(best=5e-4, worst=5e-4, momentum=0.9, probe_noise=2e-5)
    runs = [simulate(PosteriorExposure(CONFIG, 100, seed), [flat], 100, 1000 + seed) for seed in range(20)]
    ends = [fmean(alpha for (alpha,) in run.alphas[-20:]) for run in runs]
    assert 0.1 < min(ends) < max(ends) < 0.9
    assert stdev(ends) > 0.05


def test_scores_cover_the_range_of_exposures_that_may_be_used():
    config = replace(CONFIG, clip_low=0.2, clip_high=0.7)
    metrics = drive(started(config), 0, 4, wave)[-1]
    scored = [float(name.removeprefix("controller/score/")) for name in metrics if name.startswith("controller/score/")]
    assert scored == pytest.approx([0.2 + 0.05 * i for i in range(NODES)])
    assert all(0.2 <= alpha <= 0.7 for alpha in [p.alpha for p in drive(started(config), 0, 60, wave)[::2]])


def test_a_single_exposure_to_choose_from_is_played():
    assert {p.alpha for p in drive(started(replace(CONFIG, clip_low=0.4, clip_high=0.4)), 0, 20, wave)[::2]} == {0.4}


def test_the_metrics_are_those_of_the_decision_in_force():
    seen = drive(started(), 0, 8, wave)[1::2]
    decided = [{name: value for name, value in metrics.items() if name != "exposure/alpha"} for metrics in seen]
    assert decided[0] == decided[3] != decided[4] == decided[7]
    assert {"exposure/a", "exposure/b", "exposure/mean", "controller/posterior_best", "controller/posterior_sd"} < set(decided[0])


def test_make_mode_knows_it_and_no_exposure_exceeds_the_clip():
    assert isinstance(make_mode(CONFIG, 100, 1), PosteriorExposure)
    assert highest_exposure(replace(CONFIG, clip_high=0.8)) == 0.8
