"""Simulated students are what their settings say, against plain references, and none of them knows which mode it is under."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean, pvariance
from typing import Any

import numpy as np
import pytest

from megatron_atesd.config import ExposureConfig
from megatron_atesd.exposure.aligned import exposure_grid
from megatron_atesd.exposure.modes import make_mode
from megatron_atesd.exposure.simulated_scores import SimulatedScores
from megatron_atesd.exposure.simulated_student import BIN_SEED, StudentModel, in_bins
from megatron_atesd.exposure.simulation import run_of, simulate
from megatron_atesd.exposure.simulation_figures import run_figures, summarize, summary
from megatron_atesd.exposure.simulation_study import cases
from megatron_atesd.records import UpdateStats

ALPHAS = [(i + 0.5) / 4000 for i in range(4000)]
CLIFF = StudentModel(optimum=0.7, below=1.4, above=0.1)
FALLING = StudentModel(optimum=0.9, final_optimum=0.3)
CASES = cases(StudentModel())
QUIET: dict[str, Any] = {"training_noise": 0.0, "probe_noise": 0.0, "start": 1e6}  # the floor is far away


def heard(config: ExposureConfig, students: Sequence[StudentModel], updates: int, seed: int = 0) -> list[float]:
    """The progress signal that a mode hears, from before the first update on."""
    seen: list[float] = []
    mode = make_mode(config, updates, seed)
    observe = mode.observe

    def listening(stats: UpdateStats) -> dict[str, float]:
        seen.append(stats.progress or math.nan)
        return observe(stats)

    mode.observe = listening
    simulate(mode, students, updates, 1000 + seed)
    return seen


def drops(levels: Sequence[float]) -> list[float]:
    return [before - after for before, after in pairwise(levels)]


@pytest.mark.parametrize("name", [name for name in CASES if name != "flat"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_regret_is_one_for_a_random_exposure_and_zero_at_the_optimum_of_every_student(name: str, share: float):
    for student in CASES[name].students:
        assert fmean(student.regret(alpha, share) for alpha in ALPHAS) == pytest.approx(1.0, abs=1e-5)
        assert student.regret(student.best_exposure(share), share) == 0.0
        assert max(ALPHAS, key=lambda alpha: student.drop(alpha, share)) == pytest.approx(student.best_exposure(share), abs=1e-3)


@pytest.mark.parametrize("student", [StudentModel(), CLIFF, FALLING])
def test_regret_is_in_proportion_to_the_drop_that_is_lost(student: StudentModel):
    random = fmean(student.drop(alpha, 0.3) for alpha in ALPHAS)
    assert student.random_drop(0.3) == pytest.approx(random, rel=1e-5)
    for alpha in (0.0, 0.4, 0.75, 1.0):
        lost = (student.best - student.drop(alpha, 0.3)) / (student.best - random)
        assert student.regret(alpha, 0.3) == pytest.approx(lost, rel=1e-4)


def test_a_random_exposure_has_regret_one_in_a_run_of_every_student():
    for name, case in CASES.items():
        if name not in ("flat", "bins-apart"):
            found = summarize(ExposureConfig(mode="random", hold=2), case.students, 100, 10)
            assert abs((found["regret"] or 0) - 1) < 4 * (found["regret_error"] or 0), name


def test_a_moving_optimum_goes_in_a_straight_line_from_the_first_update_to_the_last():
    steady = ExposureConfig(mode="fixed", fixed=0.6)
    width = [max(optimum, 1 - optimum) for optimum in (0.9, 0.75, 0.6, 0.45, 0.3)]
    expected = [8e-4 - 6e-4 * (away / wide) ** 2 for away, wide in zip((0.3, 0.15, 0, 0.15, 0.3), width, strict=True)]
    assert drops(heard(steady, [replace(FALLING, **QUIET)], 5)) == pytest.approx(expected, rel=1e-4)


def test_with_a_cliff_one_side_of_the_optimum_loses_all_at_once_and_the_other_little():
    assert [CLIFF.drop(alpha) for alpha in (0.7, 0.8, 1.0)] == pytest.approx([8e-4, 2e-4, 2e-4])
    assert [CLIFF.drop(alpha) for alpha in (0.6, 0.35, 0.0)] == pytest.approx([8e-4 - 6e-4 * (x / 1.4) ** 2 for x in (0.1, 0.35, 0.7)])


def test_a_delayed_student_answers_to_the_exposure_of_so_many_updates_ago():
    stages = ExposureConfig(mode="step", levels=[0.5, 0.1], step_at=[2], hold=1)
    student = StudentModel(optimum=0.5, delay=3, **QUIET)
    random = fmean(student.drop(alpha) for alpha in ALPHAS)
    expected = [random] * 3 + [student.drop(0.5)] * 2 + [student.drop(0.1)] * 2
    assert drops(heard(stages, [student], 7)) == pytest.approx(expected, rel=1e-4)


def test_all_modes_meet_the_same_noise():
    """Where exposure makes no difference, all modes hear the same."""
    flat = StudentModel(best=5e-4, worst=5e-4)
    levels = [heard(ExposureConfig(mode=mode), [flat], 20, seed=3) for mode in ("learned", "posterior", "random", "fixed")]
    assert all(found == levels[0] for found in levels)
    assert levels[0] != heard(ExposureConfig(), [flat], 20, seed=4)


def test_a_flat_student_has_no_regret_but_a_policy():
    flat = [StudentModel(best=5e-4, worst=5e-4)]
    edge, middle = (summarize(ExposureConfig(mode="fixed", fixed=alpha), flat, 10, 2) for alpha in (0.96, 0.5))
    assert (edge["regret"], edge["final_regret"], edge["regret_error"]) == (None, None, None)
    assert (edge["alpha"], edge["saturated"], middle["saturated"]) == (pytest.approx(0.96), 1.0, 0.0)


@pytest.mark.parametrize("mode", ["learned", "posterior", "aligned", "target_kl"])
def test_a_run_of_two_bins_is_two_runs_of_one(mode: Any):
    config, students = ExposureConfig(mode=mode, hold=3), in_bins(StudentModel(), [0.9, 0.2])
    together = run_of(replace(config, bins=2), students, 30, 5)
    for i, student in enumerate(students):
        alone = run_of(config, [student], 30, 5 + BIN_SEED * i)
        assert [each[i] for each in together.alphas] == [alpha for (alpha,) in alone.alphas]
        assert [each[i] for each in together.means] == [mean for (mean,) in alone.means]
    assert len({alphas[0] for alphas in together.alphas}) > 1


def test_one_exposure_for_two_bins_hears_the_mean_of_both():
    steady, students = ExposureConfig(mode="fixed", fixed=0.4), in_bins(StudentModel(**QUIET), [0.9, 0.2])
    assert drops(heard(steady, students, 3)) == pytest.approx([fmean(student.drop(0.4) for student in students)] * 3, rel=1e-4)
    assert run_figures(steady, students, 3, [0])[0]["regret"] == pytest.approx(fmean(student.regret(0.4) for student in students))


def test_the_mean_of_bins_is_as_noisy_as_one_student():
    students = in_bins(StudentModel(best=0.0, worst=0.0, training_noise=0.0, probe_noise=1e-3), [0.9, 0.2])
    found = [level for seed in range(20) for level in heard(ExposureConfig(mode="fixed"), students, 50, seed)]
    assert pvariance(found) == pytest.approx(1e-6, rel=0.15)


@pytest.mark.parametrize(("rho", "lasting"), [(0.0, 0.25), (0.3, 0.25), (0.6, 0.0), (0.6, 0.5), (1.0, 0.25)])
def test_scores_have_the_correlation_with_the_truth_and_the_lasting_error_that_are_asked_for(rho: float, lasting: float):
    grid, student = exposure_grid(ExposureConfig(mode="aligned")), StudentModel(optimum=0.3, rho=rho, lasting=lasting)
    measured = [SimulatedScores([student], grid, 10, seed) for seed in range(1500)]
    first, second = (np.array([scores.at(step) for scores in measured]) for step in (0, 5))
    truth = np.array([student.drop(alpha) for alpha in grid])
    assert np.corrcoef(np.tile(truth, 1500), first.ravel())[0, 1] == pytest.approx(rho, abs=0.04)
    assert first.var() == pytest.approx(1.0, abs=0.05)
    if rho < 1:
        errors = [found - rho * (truth - truth.mean()) / truth.std() for found in (first, second)]
        assert np.corrcoef(*(error.ravel() for error in errors))[0, 1] == pytest.approx(lasting, abs=0.04)
        assert abs(np.corrcoef(errors[0].T) - np.eye(len(grid))).max() < 0.1


def test_true_scores_play_the_best_exposure_of_the_grid_in_every_update():
    config = ExposureConfig(mode="aligned", hold=2)
    assert set(run_of(config, [StudentModel(optimum=0.3, rho=1.0)], 6, 1).alphas) == {(0.25,)}
    apart = replace(config, bins=2)
    assert set(run_of(apart, in_bins(StudentModel(rho=1.0), [0.9, 0.2]), 6, 1).alphas) == {(1.0, 0.25)}


def test_scores_follow_an_optimum_that_moves():
    found = run_of(ExposureConfig(mode="aligned", hold=5, score_decay=0.0), [replace(FALLING, rho=1.0)], 100, 1).alphas
    assert [found[0], found[50], found[-1]] == [(1.0,), (0.5,), (0.25,)]


def test_standard_errors_are_those_of_a_mean_over_runs():
    found = summary([{"regret": value} for value in (0.1, 0.4, 0.7, 0.4)], [StudentModel()])
    assert found == {"regret": pytest.approx(0.4), "regret_error": pytest.approx(np.std([0.1, 0.4, 0.7, 0.4], ddof=1) / 2)}


def test_the_last_fifth_is_told_apart_from_the_whole():
    ramp = ExposureConfig(mode="linear", hold=1)
    found = run_figures(ramp, [StudentModel(optimum=0.5)], 11, [0])[0]
    assert (found["alpha"], found["final_alpha"]) == (pytest.approx(0.5), pytest.approx(0.95))
    assert found["final_regret"] == pytest.approx(fmean((0.25, 0.16)) * 12)


def test_a_run_is_the_same_for_the_same_seed():
    for mode in ("learned", "posterior", "aligned", "random"):
        config = ExposureConfig(mode=mode)
        again = [run_of(config, [StudentModel()], 12, seed) for seed in (1, 1, 2)]
        assert again[0] == again[1] != again[2], mode
