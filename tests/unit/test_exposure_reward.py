"""The look-ahead reward and the advantages, against numbers worked out by hand."""

import pytest

from megatron_atesd.exposure import reward

PROGRESS = [2.0, 1.5, 1.75, 1.25]  # changes −0.5, +0.25, −0.5


def test_learning_progress_counts_discounted_drops():
    assert reward.learning_progress(PROGRESS, discount=0.5) == 0.5 + 0.5 * 0 + 0.25 * 0.5


def test_signed_learning_progress_counts_rises_against_it():
    assert reward.learning_progress(PROGRESS, discount=0.5, positive_part=False) == 0.5 - 0.5 * 0.25 + 0.25 * 0.5


def test_signed_learning_progress_telescopes_without_discount():
    assert reward.learning_progress(PROGRESS, discount=1.0, positive_part=False) == 2.0 - 1.25


def test_grounding_is_a_discounted_mean():
    assert reward.grounding_level([-1.0, -2.0, -4.0], discount=0.5) == pytest.approx((-1.0 - 1.0 - 1.0) / 1.75)


def test_rewards_add_the_weighted_grounding():
    assert reward.combine([0.6, 0.2], [-2.0, -1.0], 0.1) == pytest.approx([0.4, 0.1])


def test_each_term_is_divided_by_its_own_scale():
    assert reward.combine([0.6], [-2.0], 0.1, scales=(0.2, 4.0)) == pytest.approx([3.0 - 0.05])


def test_running_std_is_the_population_std():
    assert reward.running_std([1.0, 3.0, 5.0, 7.0]) == pytest.approx(5**0.5)


@pytest.mark.parametrize("values", [[4.0], [2.0, 2.0, 2.0]])
def test_running_std_is_one_while_it_cannot_divide(values: list[float]):
    assert reward.running_std(values) == 1.0


def test_batch_advantages_are_standardised():
    assert reward.batch_advantages([1.0, 3.0, 5.0, 7.0]) == pytest.approx([-3 / 5**0.5, -1 / 5**0.5, 1 / 5**0.5, 3 / 5**0.5], rel=1e-5)


def test_equal_rewards_have_no_advantage():
    assert reward.batch_advantages([0.7, 0.7]) == [0.0, 0.0]


def test_ema_advantages_compare_with_the_weighted_history():
    # weights ¼, ½, 1: mean (0 + 1 + 4) / 1.75 = 20/7; variance (¼·(20/7)² + ½·(6/7)² + (8/7)²) / 1.75 = 104/49
    mean, std = 20 / 7, (104 / 49) ** 0.5
    assert reward.ema_advantages([0.0, 2.0, 4.0], 2, decay=0.5) == pytest.approx([(2 - mean) / std, (4 - mean) / std], rel=1e-5)


def test_the_first_reward_has_no_ema_advantage():
    assert reward.ema_advantages([0.3], 1, decay=0.9) == [0.0]
