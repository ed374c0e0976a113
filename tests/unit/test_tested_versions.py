"""The README's table, the bounds and the locks follow the recorded runs. A run that is being recorded leaves these tests out."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from megatron_atesd.report.tested_versions import RecordedRun, place, read_runs, with_run, with_table

ROOT = Path(__file__).resolve().parents[2]
README, TESTED = ROOT / "README.md", ROOT / "requirements" / "tested.json"
LOCKS = sorted((ROOT / "requirements").glob("py*.txt"))
# Strict: with the row of Python 3.13 both marks must go, and the README's sentence about it.
NOT_YET = pytest.mark.xfail(strict=True, reason="Python 3.13 has no whole run yet: make tested PYTHON=python3.13")


def run_of(python: str, megatron_core: str, date: str = "2026-01-02") -> RecordedRun:
    about = {"torch": "2.0.0", "transformers": "5.0.0", "passed": 1234, "skipped": 5, "minutes": 6, "date": date, "commit": "abcdef0"}
    return RecordedRun(python=python, megatron_core=megatron_core, **about)  # type: ignore[typeddict-item]


@pytest.fixture
def _not_while_recording(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("record_tested"):
        pytest.skip("the row of this run is not there yet")


@pytest.fixture
def runs(_not_while_recording: None) -> list[RecordedRun]:
    if not TESTED.exists():
        pytest.skip("no run is recorded yet: make tested")
    return read_runs(TESTED)


def next_minor(release: tuple[int, ...]) -> str:
    return f"{release[0]}.{release[1] + 1}"


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.usefixtures("_not_while_recording")
def test_the_readme_has_the_table_of_the_recorded_runs() -> None:
    text = README.read_text(encoding="utf-8")
    assert text == with_table(text, read_runs(TESTED)), "run: python tools/make_docs.py"


def test_megatron_core_is_bounded_by_the_oldest_and_newest_that_passed(runs: list[RecordedRun]) -> None:
    versions = sorted(place(run)[1] for run in runs)
    (bounds,) = [r.specifier for r in map(Requirement, project()["dependencies"]) if r.name == "megatron-core"]
    assert bounds == SpecifierSet(f">={versions[0]},<{next_minor(versions[-1].release)}")


@NOT_YET
def test_python_is_bounded_by_the_oldest_and_newest_that_passed(runs: list[RecordedRun]) -> None:
    pythons = sorted(place(run)[0] for run in runs)
    oldest = ".".join(map(str, pythons[0]))
    assert SpecifierSet(project()["requires-python"]) == SpecifierSet(f">={oldest},<{next_minor(pythons[-1])}")


@pytest.mark.parametrize("lock", [pytest.param(lock, marks=[NOT_YET] if lock.stem == "py313" else [], id=lock.stem) for lock in LOCKS])
def test_a_lock_names_a_megatron_core_that_passed_on_its_python(lock: Path, runs: list[RecordedRun]) -> None:
    passed = [run["megatron_core"] for run in runs if "py{}{}".format(*place(run)[0]) == lock.stem]
    (pinned,) = [line.partition("==")[2] for line in lock.read_text().splitlines() if line.startswith("megatron-core==")]
    assert pinned in passed


def test_a_new_run_takes_the_place_of_an_older_one_of_the_same_python_and_megatron_core() -> None:
    other, old, new = run_of("3.12.1", "0.18.2"), run_of("3.12.1", "0.19.2"), run_of("3.12.9", "0.19.2", "2026-02-03")
    assert with_run([other, old], new) == [other, new]


def test_runs_are_sorted_by_number() -> None:
    ordered = [run_of("3.9.1", "0.9.0"), run_of("3.9.1", "0.10.0"), run_of("3.10.1", "0.2.0")]
    assert with_run([ordered[2], ordered[0]], ordered[1]) == ordered


def test_the_table_has_a_row_for_each_run() -> None:
    text = "before\n<!-- tested -->\nold\n<!-- /tested -->\nafter\n"
    row = "| 3.12.1 | 0.19.2 | 2.0.0 | 5.0.0 | 1,234 (5) | 6 | 2026-01-02 (abcdef0) |"
    head, rule, *rows = with_table(text, [run_of("3.12.1", "0.19.2")]).splitlines()[2:-2]
    assert (head.count("|"), rule, rows) == (8, "|---|---|---|---|---|---|---|", [row])


def test_without_a_run_the_table_says_so() -> None:
    text = "<!-- tested -->\nold\n<!-- /tested -->\n"
    assert with_table(text, []) == "<!-- tested -->\nNo run is recorded yet.\n<!-- /tested -->\n"


def test_a_text_without_a_place_for_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="substring not found"):
        with_table("no comments", [])
