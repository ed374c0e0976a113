"""The curve's rows, steps and the test whether every step rises, on cases that can be worked out by hand."""

from typing import Any

import numpy as np
import pytest

from megatron_atesd.evaluate.uncertainty import mean_difference
from megatron_atesd.train.mismatch_curve import mismatch_curve, mismatch_table

TOKENS = np.array([10.0, 10.0, 10.0, 10.0])
NOISE = np.array([-0.1, 0.1, -0.2, 0.2])  # of a problem, a token


def curve(*means: float, tokens: np.ndarray = TOKENS, noise: np.ndarray = NOISE) -> dict[str, Any]:
    """Of problems whose KL a token at each exposure is the mean plus a noise that grows with the exposure."""
    kl_NA = np.stack([tokens * (mean + place * noise) for place, mean in enumerate(means)], axis=1)
    alphas = np.linspace(0, 1, len(means)).tolist()
    shown = {"revealed": np.outer(np.array([1, 1, 2, 2]), alphas), "segments": np.outer(np.array([1, 1, 2, 2]), np.ones(len(means)))}
    return mismatch_curve(alphas, {"kl": (kl_NA, tokens), "disagreement": (kl_NA / 2, tokens)}, shown)


def test_a_row_has_the_mean_over_tokens_and_its_standard_error_over_problems() -> None:
    row = curve(0.5, 1.0)["rows"][1]
    assert row["alpha"] == 1
    assert (row["kl"], row["disagreement"], row["revealed"], row["segments"]) == pytest.approx((1.0, 0.5, 1.5, 1.5))
    error = np.std(NOISE, ddof=1) / 2
    assert (row["errors"]["kl"], row["errors"]["disagreement"]) == pytest.approx((error, error / 2))
    assert row["errors"]["revealed"] == pytest.approx(np.std([1, 1, 2, 2], ddof=1) / 2)


def test_long_responses_count_by_their_tokens() -> None:
    tokens = np.array([30.0, 10.0])
    rows = mismatch_curve([0, 1], {"kl": (np.array([[3.0, 6.0], [2.0, 4.0]]), tokens)}, {})["rows"]
    assert [row["kl"] for row in rows] == pytest.approx([5 / 40, 10 / 40])


def test_a_step_is_the_paired_t_test_of_the_rise() -> None:
    (step,) = curve(0.3, 0.5)["steps"]
    two_sided = mean_difference(0.5 + NOISE, np.full(4, 0.3))["p_value"]
    assert step["rise"] == pytest.approx(0.2)
    assert step["error"] == pytest.approx(np.std(NOISE, ddof=1) / 2)
    assert step["p_value"] == pytest.approx(two_sided / 2)


def test_what_all_exposures_share_is_no_noise_of_a_step() -> None:
    hard = np.array([0.0, 5.0, 1.0, 9.0])[:, None]
    (step,) = mismatch_curve([0, 1], {"kl": (hard + np.stack([np.zeros(4), 0.5 + NOISE], axis=1), np.ones(4))}, {})["steps"]
    assert step["p_value"] == pytest.approx(curve(0.0, 0.5)["monotone_p"])


def test_the_curve_is_as_clear_as_its_least_clear_step() -> None:
    found = curve(0.0, 2.0, 2.3, 4.0)
    p_values = [step["p_value"] for step in found["steps"]]
    assert found["monotone_p"] == p_values[1] > max(p_values[0], p_values[2])


def test_a_dip_is_no_rise_however_steep_the_rest_is() -> None:
    found = curve(0.0, 2.0, 1.8, 4.0)
    assert [step["p_value"] < 0.01 for step in found["steps"]] == [True, False, True]
    assert found["monotone_p"] == pytest.approx(1 - mean_difference(NOISE + 0.2, np.zeros(4))["p_value"] / 2)
    assert found["monotone_p"] > 0.8


def test_exposures_that_reveal_the_same_do_not_rise() -> None:
    flat = np.array([[1.0, 1.0], [2.0, 2.0], [0.5, 0.5]])
    assert mismatch_curve([0, 1], {"kl": (flat, np.ones(3))}, {})["monotone_p"] == 1.0


def test_the_table_says_which_step_has_which_p_value() -> None:
    found: dict[str, Any] = curve(0.0, 2.0, 1.8) | {"problems": 4}
    table = mismatch_table(found)
    assert list(table.columns[-1].cells) == ["", *(f"{step['p_value']:.2g}" for step in found["steps"])]
    assert list(table.columns[0].cells) == ["0", "0.5", "1"]
    assert list(table.columns[1].cells) == ["0.0 of 1.5", "0.8 of 1.5", "1.5 of 1.5"]
    assert list(table.columns[2].cells)[1] == f"2.0000 ± {np.std(NOISE, ddof=1) / 2:.4f}"
    assert list(table.columns[3].cells)[1] == f"100.0 ± {50 * np.std(NOISE, ddof=1) / 2:.1f}"
