"""Each alarm goes off where its condition begins, once an episode, and none on healthy runs or short ones."""

import math
from dataclasses import replace
from typing import Any

import pytest

from megatron_atesd.config import ALARMS, DataConfig, ExposureConfig, HealthConfig, TrainConfig
from megatron_atesd.report.alarms import ALARM
from megatron_atesd.report.health import HealthWatch
from tests.support.health_series import WELL, WINDOW, Metrics, alarms_of, config_of, names_of, read_healthy

FIRST = [WELL] * WINDOW


def then(count: int, **changed: float | None) -> list[Metrics]:
    """So many updates with other values; `distill_kl=…` is of distill/kl."""
    names = {name.replace("/", "_"): name for name in WELL}
    return [WELL | {names[key]: value for key, value in changed.items()}] * count


def test_each_alarm_of_the_settings_has_its_condition() -> None:
    assert set(ALARM) == set(ALARMS)


@pytest.mark.parametrize("mode", ["aligned", "fixed", "random", "learned"])
def test_a_healthy_quickstart_sets_off_no_alarm(mode: Any) -> None:
    """A hundred updates each, with the default thresholds, and the exposure settings of examples/quickstart."""
    learned: dict[str, Any] = {"hold": 2, "lookahead": 5, "advantage": "ema", "batch": 1} if mode == "learned" else {"hold": 5}
    exposure = ExposureConfig(mode=mode, progress="probe_nll" if mode == "learned" else "train_accuracy", **learned)
    series = read_healthy()[mode]
    assert len(series) == 100
    assert names_of(TrainConfig(exposure=exposure), series) == []


BOUNDARIES: dict[str, tuple[dict[str, float], dict[str, float]]] = {  # (just well, just ill)
    "kl_collapse": ({"distill_kl": 1.01e-4}, {"distill_kl": 0.99e-4}),
    "kl_explosion": ({"distill_kl": 0.399}, {"distill_kl": 0.401}),
    "entropy_collapse": ({"student_entropy": 0.101}, {"student_entropy": 0.099}),
    "length_drift": ({"rollout_length": 199.0}, {"rollout_length": 201.0}),
    "truncation": ({"rollout_truncated": 0.49}, {"rollout_truncated": 0.51}),
    "loops": ({"rollout_loops": 0.09}, {"rollout_loops": 0.11}),
    "leakage": ({"rollout_leakage": 0.019}, {"rollout_leakage": 0.021}),
    "exploration_loss": ({"rollout_exploration": 6.1}, {"rollout_exploration": 5.9}),
    "logprob_gap": ({"rollout_logprob_gap": 0.049}, {"rollout_logprob_gap": 0.051}),
}


@pytest.mark.parametrize("name", BOUNDARIES)
def test_an_alarm_begins_at_its_threshold(name: str) -> None:
    well, ill = BOUNDARIES[name]
    assert names_of(config_of(), FIRST + then(2 * WINDOW, **well)) == []
    assert [alarm for _, alarm in names_of(config_of(), FIRST + then(2 * WINDOW, **ill))] == [name]


@pytest.mark.parametrize("name", BOUNDARIES)
def test_null_turns_an_alarm_off(name: str) -> None:
    watch = HealthWatch(config_of(**{name: None}))
    for update, metrics in enumerate(FIRST + then(2 * WINDOW, **BOUNDARIES[name][1]), 1):
        assert watch.observe(update, metrics) == []
    assert f"health/{name}" not in watch.metrics()


@pytest.mark.parametrize("name", sorted(set(BOUNDARIES) - {"logprob_gap"}))
def test_one_bad_update_is_no_alarm(name: str) -> None:
    """Shares are averaged: one update of four that is as ill as the threshold. Of other metrics the median counts."""
    far = {"distill_kl": 50.0, "student_entropy": 1e-3, "rollout_length": 9e3}
    ill = {key: far.get(key, value) for key, value in BOUNDARIES[name][1].items()}
    assert names_of(config_of(), [*FIRST, *FIRST, *then(1, **ill), *FIRST]) == []


def test_a_gap_that_is_no_number_is_an_alarm_at_once() -> None:
    for value in (math.nan, math.inf, None):
        assert names_of(config_of(), then(1, rollout_logprob_gap=value)) == [(1, "logprob_gap")]


def test_responses_that_halve_drift_too() -> None:
    assert [alarm for _, alarm in names_of(config_of(), FIRST + then(2 * WINDOW, rollout_length=49.0))] == ["length_drift"]


def test_an_alarm_speaks_once_an_episode() -> None:
    """Which ends when the condition has not held for a window."""
    ill, well = then(3 * WINDOW, rollout_loops=1.0), then(3 * WINDOW)
    said = names_of(config_of(), [*FIRST, *ill, *then(1), *ill, *well, *ill])
    assert [name for _, name in said] == ["loops", "loops"]
    assert said[1][0] > WINDOW + 2 * 3 * WINDOW + 1 + 3 * WINDOW


def test_a_metric_says_whether_the_condition_holds() -> None:
    watch, seen = HealthWatch(config_of()), list[float]()
    for update, metrics in enumerate([*FIRST, *then(2 * WINDOW, rollout_loops=1.0), *then(2 * WINDOW)], 1):
        watch.observe(update, metrics)
        seen.append(watch.metrics()["health/loops"])
    assert seen == [0.0] * WINDOW + [1.0] * (3 * WINDOW - 1) + [0.0] * (WINDOW + 1)
    assert set(watch.metrics()) == {f"health/{name}" for name in ALARMS}


def test_what_is_wrong_from_the_start_is_said_after_one_window() -> None:
    assert names_of(config_of(), then(9, rollout_truncated=1.0)) == [(WINDOW, "truncation")]


def test_a_kl_that_rises_with_the_exposure_is_no_explosion() -> None:
    """As of mode linear, and of one that draws: .014 at α = 0, .26 at 1."""
    rising = [WELL | {"exposure/alpha": i / 60, "distill/kl": 0.014 * 19 ** (i / 60)} for i in range(61)]
    drawn = [WELL | {"exposure/alpha": (a := (7 * (i // 3) % 11) / 10), "distill/kl": 0.014 * 19**a} for i in range(61)]
    assert names_of(config_of(), rising) == names_of(config_of(), drawn) == []


def test_a_kl_that_explodes_after_the_exposure_has_risen_is_one() -> None:
    low, high = then(9, exposure_alpha=0.1, distill_kl=0.01), then(9, exposure_alpha=0.9, distill_kl=0.2)
    said = names_of(config_of(), low + high + then(9, exposure_alpha=0.9, distill_kl=0.81))
    assert [name for _, name in said] == ["kl_explosion"]


@pytest.mark.parametrize("exposure", [ExposureConfig(mode="none"), ExposureConfig(mode="fixed", fixed=0.0, reference="none")])
def test_a_teacher_that_is_shown_nothing_may_agree(exposure: ExposureConfig) -> None:
    assert names_of(config_of(exposure), then(9, distill_kl=0.0)) == []


def test_a_model_with_hardly_an_exploration_word_cannot_lose_them() -> None:
    """Eight responses of 100 tokens in each of four updates: 15 words in 1,000 tokens are 48 in all, of which none may be chance."""
    few, enough = then(WINDOW, rollout_exploration=15.0), then(WINDOW, rollout_exploration=16.0)
    none = then(WINDOW, rollout_exploration=0.0)
    assert names_of(config_of(), few + none) == []
    assert [name for _, name in names_of(config_of(), enough + none)] == ["exploration_loss"]
    none = then(9 * WINDOW, rollout_exploration=0.0)
    assert names_of(config_of(), none) == []


def test_the_message_says_what_was_found_against_which_threshold_and_what_to_do() -> None:
    (alarm,) = alarms_of(config_of(loops=0.25), then(WINDOW, rollout_loops=0.5))
    assert str(alarm).startswith("warning: health.loops 0.25: 50 % of the responses repeat themselves until they are cut. ")
    assert str(alarm).endswith(ALARM["loops"].remedy)


def test_null_in_a_recorded_line_is_what_nan_was_live() -> None:
    series = [*FIRST, *then(3, distill_kl=math.nan, student_entropy=math.nan), *then(9)]
    recorded = [{name: None if value is not None and math.isnan(value) else value for name, value in line.items()} for line in series]
    assert names_of(config_of(), series) == names_of(config_of(), recorded)


# Controllers that are stuck: their real ones are in test_health_conditions.py.
LEARNED = ExposureConfig(mode="learned", hold=2, lookahead=3, batch=2, warmup_updates=5)


def test_a_policy_must_be_narrow_for_three_windows_and_eight_decisions() -> None:
    """Three windows are 12 updates, eight decisions 16; the warm-up's five do not count."""
    said = names_of(config_of(LEARNED, controller_idle=None), then(30, exposure_alpha=0.7))
    assert said == [(5 + 16, "controller_saturated")]


def test_a_policy_that_tries_a_little_is_not_saturated() -> None:
    alphas = [0.70, 0.70, 0.725, 0.725] * 9
    assert names_of(config_of(LEARNED, controller_idle=None), [WELL | {"exposure/alpha": alpha} for alpha in alphas]) == []


@pytest.mark.parametrize("mode", ["aligned", "posterior", "fixed", "linear", "random", "step"])
def test_a_mode_that_need_not_try_may_keep_to_one_exposure(mode: Any) -> None:
    assert names_of(config_of(ExposureConfig(mode=mode), controller_idle=None), then(60)) == []


@pytest.mark.parametrize(("alpha", "said"), [(0.2, [(16, "controller_saturated")]), (0.8, [(16, "controller_saturated")]), (0.5, [])])
def test_a_target_that_is_out_of_reach_keeps_the_exposure_at_a_bound(alpha: float, said: list[tuple[int, str]]) -> None:
    exposure = ExposureConfig(mode="target_kl", hold=2, clip_low=0.2, clip_high=0.8)
    assert names_of(config_of(exposure), then(30, exposure_alpha=alpha)) == said


def test_one_saturated_bin_is_enough() -> None:
    exposure = replace(LEARNED, bins=2, warmup_updates=0)
    series = [WELL | {"bin0/exposure/alpha": (i // 2 % 5) / 5, "bin1/exposure/alpha": 0.9} for i in range(30)]
    assert names_of(config_of(exposure, controller_idle=None), series) == [(16, "controller_saturated")]


def counted(updates: list[float]) -> list[Metrics]:
    return [WELL | {"exposure/alpha": (i // 2 % 5) / 5, "controller/updates": count} for i, count in enumerate(updates)]


def test_a_policy_that_never_learns_is_idle_after_what_it_needs_and_the_threshold() -> None:
    """Warm-up 5, look-ahead 3, two decisions of two updates: a policy update by update 12."""
    assert names_of(config_of(LEARNED, controller_idle=6), counted([0.0] * 30)) == [(5 + 3 + 4 + 6 + 1, "controller_idle")]


def test_a_policy_that_stops_learning_is_idle_too() -> None:
    said = names_of(config_of(LEARNED, controller_idle=6), counted([*([0.0] * 12), *([1.0] * 20)]))
    assert said == [(13 + 3 + 4 + 6 + 1, "controller_idle")]


def test_a_policy_that_learns_is_not_idle() -> None:
    assert names_of(config_of(LEARNED, controller_idle=6), counted([float(i // 4) for i in range(60)])) == []


@pytest.mark.parametrize("window", [1, 10])
def test_a_run_shorter_than_two_windows_has_nothing_to_compare(window: int) -> None:
    series = then(window, student_entropy=1.0) + then(window - 1, student_entropy=1e-3)
    assert names_of(TrainConfig(health=HealthConfig(window=window), exposure=ExposureConfig(mode="fixed")), series) == []


def test_a_larger_batch_has_more_words() -> None:
    series = then(WINDOW, rollout_exploration=15.0) + then(WINDOW, rollout_exploration=0.0)
    config = replace(config_of(), data=DataConfig(batch=16))
    assert [name for _, name in names_of(config, series)] == ["exploration_loss"]
