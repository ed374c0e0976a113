"""When a refreshed teacher becomes the student's copy."""

from collections.abc import Sequence

import pytest

from megatron_atesd.train.refresh import GainGate


def opened(gate: GainGate, progress: Sequence[float | None], first: int = 0) -> list[int]:
    """Updates after which the gate opened; progress: after update `first`, and so on."""
    return [update for update, value in enumerate(progress, first) if gate.opens(update, value)]


def test_it_opens_only_where_progress_is_below_that_of_the_last_refresh() -> None:
    assert opened(GainGate(1), [3.0, 3.1, 2.0, 2.5, 2.0, 1.9]) == [2, 5]


def test_an_update_that_measured_nothing_changes_nothing() -> None:
    assert opened(GainGate(1), [3.0, None, None, 2.0, None, 2.5]) == [3]


def test_a_teacher_stays_as_long_as_it_must() -> None:
    assert opened(GainGate(3), [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0]) == [3, 6]


def test_a_gain_that_came_too_soon_and_was_lost_opens_nothing_later() -> None:
    assert opened(GainGate(3), [3.0, 1.0, 4.0, 3.5]) == []


@pytest.mark.parametrize("after", range(1, 8))
def test_it_goes_on_from_its_state(after: int) -> None:
    progress = [3.0, 2.9, 3.1, 2.0, 2.4, 1.9, 1.8, 1.7]
    first, second = GainGate(2), GainGate(2)
    early = opened(first, progress[:after])
    second.load_state_dict(first.state_dict())
    assert early + opened(second, progress[after:], after) == opened(GainGate(2), progress) == [3, 5, 7]


def test_a_state_from_before_the_first_measurement_forgets_what_came_later() -> None:
    """The bias check puts such a state back."""
    gate, state = GainGate(1), GainGate(1).state_dict()
    assert opened(gate, [3.0, 2.0]) == [1]
    gate.load_state_dict(state)
    assert gate == GainGate(1)
