"""A run that one version of megatron.core saved goes on in another as if it had never been broken off."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from megatron_atesd.faults.state import checkpoint_state, differences, metrics, reproducible
from tests.support.version_runs import BROKEN, MOVES, RUNS, UPDATES, continued, moved, unbroken
from tests.support.versions import ALL, MARKS, PAIRS, Lab, Version

pytestmark = MARKS


@cache
def final_state(run_dir: Path) -> dict[str, Any]:
    return checkpoint_state(run_dir / "checkpoints" / f"step_{UPDATES}")


def later_metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [reproducible(line) for line in metrics(run_dir) if line["update"] > BROKEN]


@pytest.mark.parametrize("version", ALL, ids=str)
def test_each_process_has_the_version_that_it_is_called_by(lab: Lab, version: Version) -> None:
    from tests.support.version_folders import named

    assert (lab.of(version, named) / "version").read_text() == version.name.split()[0]
    assert len({version.name for version in ALL}) == len(ALL)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(("first", "second"), PAIRS, ids=str)
def test_metrics_of_a_run_that_changes_its_version_are_those_of_both(lab: Lab, first: Version, second: Version, run: str) -> None:
    found = later_metrics(lab.of(second, continued, lab.of(first, unbroken)) / run)
    assert [line["update"] for line in found] == list(range(BROKEN + 1, UPDATES + 1))
    for version in (first, second):
        assert found == later_metrics(lab.of(version, unbroken) / run)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(("first", "second"), PAIRS, ids=str)
def test_the_state_after_a_change_of_version_is_that_of_both_bit_for_bit(lab: Lab, first: Version, second: Version, run: str) -> None:
    found = final_state(lab.of(second, continued, lab.of(first, unbroken)) / run)
    for version in (first, second):
        assert differences(found, final_state(lab.of(version, unbroken) / run)) == []


@pytest.mark.parametrize("run", RUNS)
def test_training_moved_the_state_after_the_break(lab: Lab, run: str) -> None:
    """Otherwise equal states would say little."""
    run_dir = lab.of(ALL[0], unbroken) / run
    before = checkpoint_state(run_dir / "checkpoints" / f"step_{BROKEN}")
    changed = set(differences(before, final_state(run_dir)))
    assert any(path.startswith("/tensors/teacher.") for path in changed)
    assert any(path.startswith("/tensors/optimizer") for path in changed)
    assert any(path.startswith("/plain/") and "exposure" in path for path in changed)


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize(("first", "second"), PAIRS, ids=str)
def test_at_another_layout_too_another_version_goes_on_as_the_same_one(lab: Lab, first: Version, second: Version, move: str) -> None:
    runs = lab.of(first, unbroken)
    other, same = (lab.of(version, moved, runs) / move for version in (second, first))
    assert later_metrics(other) == later_metrics(same)
    assert differences(final_state(other), final_state(same)) == []
