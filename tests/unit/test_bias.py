"""What a bias check says, of numbers made by hand: 64 problems, likelihoods and accuracies by exposure."""

import json
from math import sqrt
from statistics import stdev

import pytest

from megatron_atesd.train.bias import BiasCheck, Reading

PROBLEMS = 64
RIGHT = {0.0: 30, 0.5: 45, 1.0: 20}  # problems solved after it, of 25 before: 0.5 helps, 1 harms


def check(right: dict[float, int], problems: int = PROBLEMS, **losses: tuple[float, float, float]) -> BiasCheck:
    """losses: of each likelihood at α = 0, 0.5 and 1; before it is 1."""
    after = {
        alpha: Reading({name: values[i] for name, values in losses.items()}, tuple(float(p < count) for p in range(problems)))
        for i, (alpha, count) in enumerate(right.items())
    }
    before = Reading(dict.fromkeys(losses, 1.0), tuple(float(p < 25) for p in range(problems)))
    return BiasCheck(20, 4, before, after, dict.fromkeys(right, 0))


def test_a_signal_that_prefers_the_worst_exposure_is_told_with_one_to_follow() -> None:
    found = check(RIGHT, probe_nll=(0.99, 0.98, 0.93), probe_own=(0.99, 0.985, 1.06), probe_margin=(0.99, 0.97, 1.04))
    assert found.verdict() == (
        "probe_nll prefers α = 1 to 0.5, but accuracy is 39.1 ± 6.1 points higher after 0.5: follow probe_margin, which orders the "
        "exposures as accuracy does, where it tells them apart"
    )


def test_probe_own_is_advised_where_the_margin_errs_too() -> None:
    found = check(RIGHT, probe_nll=(0.99, 0.98, 0.93), probe_own=(0.99, 0.98, 1.06), probe_margin=(0.9, 0.97, 1.04))
    assert found.verdict().endswith("follow probe_own, which orders the exposures as accuracy does, where it tells them apart")


def test_where_all_likelihoods_err_accuracy_is_to_be_followed() -> None:
    wrong = (0.99, 0.98, 0.93)
    assert (
        check(RIGHT, probe_nll=wrong, probe_own=wrong, probe_margin=wrong)
        .verdict()
        .endswith("follow probe_accuracy (probe_own and probe_margin err as well)")
    )
    assert check(RIGHT, probe_nll=wrong).verdict().endswith("higher after 0.5: follow probe_accuracy")


def test_signals_that_agree() -> None:
    rising = (0.9, 0.8, 0.7)
    found = check({0.0: 25, 0.5: 40, 1.0: 60}, probe_nll=rising, probe_own=rising, probe_margin=rising)
    assert found.verdict() == "probe_nll, probe_own and probe_margin order the exposures as accuracy does, where it tells them apart"


def test_another_signal_that_errs_is_told_too() -> None:
    rising = (0.9, 0.8, 0.7)
    found = check({0.0: 25, 0.5: 40, 1.0: 60}, probe_nll=rising, probe_own=(0.7, 0.8, 0.9), probe_margin=rising)
    assert found.verdict() == (
        "probe_nll and probe_margin order the exposures as accuracy does, where it tells them apart; probe_own prefers α = 0 to 1, but "
        "accuracy is 54.7 ± 6.3 points higher after 1"
    )


def test_a_pair_that_accuracy_does_not_tell_apart_is_held_against_nobody() -> None:
    found = check({0.0: 25, 0.5: 60, 1.0: 59}, probe_nll=(0.9, 0.8, 0.7), probe_own=(0.9, 0.7, 0.8))
    assert found.verdict() == "probe_nll and probe_own order the exposures as accuracy does, where it tells them apart"


def test_differences_within_noise_are_called_so() -> None:
    found = check({0.0: 25, 0.5: 27, 1.0: 26}, probe_nll=(0.9, 0.8, 0.7), probe_own=(0.9, 0.7, 0.8))
    assert found.verdict() == (
        "the differences of accuracy are within noise (the largest is 3.1 ± 2.2 points): more probe problems or updates would tell; "
        "probe_nll prefers α = 1, probe_own prefers α = 0.5"
    )
    agreeing = check({0.0: 25, 0.5: 25, 1.0: 25}, probe_nll=(0.9, 0.8, 0.7), probe_own=(0.9, 0.8, 0.7))
    assert agreeing.verdict().endswith("(the largest is 0.0 ± 0.0 points): more probe problems or updates would tell")


def test_few_problems_tell_nothing_however_alike_they_are() -> None:
    found = check({0.0: 0, 0.5: 2, 1.0: 0}, problems=2, probe_nll=(0.9, 0.8, 0.7))
    assert found.verdict().startswith("the differences of accuracy are within noise")


def test_the_error_of_a_gain_is_that_of_its_mean_over_problems() -> None:
    differences = [1.0] * 20 + [0.0] * 44  # 45 solved after it, 25 before
    gain, error = check(RIGHT, probe_nll=(1, 1, 1)).gain(0.5)
    assert gain == pytest.approx(20 / 64)
    assert error == pytest.approx(stdev(differences) / sqrt(64))


def test_the_table_and_the_record_say_the_same() -> None:
    found = check(RIGHT, probe_nll=(0.99, 0.98, 0.93))
    record, lines = json.loads(json.dumps(found.record(), allow_nan=False)), list(found.lines())
    assert [line.split()[:2] for line in lines[2:5]] == [["0", "-0.0100"], ["0.5", "-0.0200"], ["1", "-0.0700"]]
    assert [row["probe_nll"] for row in record["changes"]] == pytest.approx([-0.01, -0.02, -0.07])
    assert [row["accuracy"] for row in record["changes"]] == pytest.approx([5 / 64, 20 / 64, -5 / 64])
    assert lines[3].endswith("+31.2 ± 5.8")
    assert record["verdict"] == lines[-1]


def test_one_problem_has_no_error() -> None:
    found = check({0.0: 0, 0.5: 0, 1.0: 0}, problems=1, probe_nll=(1, 1, 1))
    assert [row["accuracy_error"] for row in found.record()["changes"]] == [None] * 3
