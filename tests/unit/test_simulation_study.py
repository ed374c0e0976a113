"""A simulated study compares every mode on equal updates, and its tables and picture show its figures."""

from dataclasses import replace
from statistics import fmean
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import yaml
from matplotlib.container import ErrorbarContainer

from megatron_atesd.config import ExposureConfig, load_config
from megatron_atesd.errors import ConfigError
from megatron_atesd.exposure.simulated_student import StudentModel
from megatron_atesd.exposure.simulation_figures import run_figures, summarize
from megatron_atesd.exposure.simulation_study import OURS, PAPER, best_constant, cases, choices, parts, results
from megatron_atesd.exposure.simulation_work import PIECE, Part, work
from megatron_atesd.report.simulation_picture import study_figure
from megatron_atesd.report.simulation_tables import tables
from tests.support.imports import ROOT

CASES = cases(StudentModel())
CHOICES = choices(3, [0.3, 0.6])
PARTS = parts(CHOICES, CASES, [4, 8], 3, 2)


def silent(share: float) -> None:
    pass


@pytest.fixture(scope="module")
def study() -> dict[str, Any]:
    named = {name: CHOICES[name] for name in ("fixed-0.5", "fixed-1", "random", "aligned-0.6")}
    students = {name: CASES[name] for name in ("optimum-0.2", "falling", "flat", "bins-apart")}
    todo = parts(named, students, [4, 8], 3, 5)
    return results(named, students, todo, work(todo, 1, silent))


def row(study: dict[str, Any], mode: str, student: str, decisions: int) -> dict[str, Any]:
    (found,) = (row for row in study["rows"] if (row["mode"], row["student"], row["decisions"]) == (mode, student, decisions))
    return found


def test_every_mode_takes_part_but_the_second_schedule_and_the_check():
    modes = set(get_args(get_type_hints(ExposureConfig)["mode"]))
    assert {choice.config.mode for choice in CHOICES.values()} == modes - {"cosine", "none"}


def test_all_modes_have_equal_updates_and_decisions():
    assert {(part.decisions, part.updates, part.config.hold) for part in PARTS} == {(4, 12, 3), (8, 24, 3)}
    assert len({part.key for part in PARTS}) == len(PARTS) == 2 * (11 * 11 + 8)


def test_modes_that_know_no_bins_are_not_tried_with_bins_apart():
    apart = {part.mode for part in PARTS if part.student == "bins-apart"}
    assert set(CHOICES) - apart == {"random", "linear", "step"}


def test_a_student_goes_the_same_part_of_its_way_in_runs_of_any_length():
    assert all(student.start == pytest.approx(0.2 * part.updates / 100) for part in PARTS for student in part.students)


def test_the_two_learned_modes_are_the_papers_and_the_study_example():
    study = yaml.safe_load((ROOT / "examples/mini_study/side.yaml").read_text())
    arm = study["arms"]["learned-margin"]
    changes = [f"--exposure.{name}={value}" for name, value in arm["exposure"].items()]
    loaded = load_config(["--config", str(ROOT / study["settings"]["config"]), "--config", str(ROOT / arm["config"]), *changes]).exposure
    elsewhere = {name: getattr(OURS, name) for name in ("hold", "progress", "reveal", "grounding_weight")}  # no matter here
    assert replace(loaded, **elsewhere) == OURS
    assert replace(ExposureConfig(), replay=0) == PAPER


def test_scores_are_as_good_as_their_mode_says():
    rhos = {part.mode: {student.rho for student in part.students} for part in PARTS if part.config.mode == "aligned"}
    assert rhos == {"aligned-0.3": {0.3}, "aligned-0.6": {0.6}}


def test_a_setting_that_a_training_would_refuse_is_refused():
    with pytest.raises(ConfigError, match=r"exposure\.levels has 2 stages, but run\.updates is 1"):
        parts(CHOICES, CASES, [1], 1, 1)


@pytest.mark.parametrize("name", ["optimum-0.9", "cliff", "falling", "bins-one-α", "bins-apart"])
def test_the_best_constant_loses_least(name: str):
    """Of all constants by hundredths, in runs of 60 updates."""
    case = CASES[name]
    found = best_constant(case)
    assert found is not None
    groups = [[student] for student in case.students] if case.apart else [case.students]
    for alpha, group in zip(found[0], groups, strict=True):
        lost = [run_figures(ExposureConfig(mode="fixed", fixed=i / 100), group, 60, [0])[0]["regret"] for i in range(0, 101, 2)]
        assert run_figures(ExposureConfig(mode="fixed", fixed=alpha), group, 60, [0])[0]["regret"] <= min(lost) + 2e-3
    regrets = [run_figures(ExposureConfig(mode="fixed", fixed=a), g, 60, [0])[0]["regret"] for a, g in zip(found[0], groups, strict=True)]
    assert found[1] == pytest.approx(fmean(regrets), abs=0.01)


def test_figures_do_not_depend_on_pieces_and_processes():
    config = replace(ExposureConfig(mode="learned"), hold=2)
    todo = [Part("m", name, 3, config, CASES[name].students, 6, PIECE + 2) for name in ("optimum-0.2", "bins-one-α")]
    shares: list[float] = []
    expected = {part.key: summarize(config, part.students, 6, PIECE + 2) for part in todo}
    assert work(todo, 1, shares.append) == expected == work(todo, 2, silent)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_a_table_has_the_figures_of_its_student(study: dict[str, Any]):
    notes, fixed, falling, flat, apart = tables(study)
    assert "5 runs" in notes
    assert "3 updates" in notes
    regret = CASES["optimum-0.2"].students[0].regret(0.5)
    assert f"| fixed-0.5           | {regret:.2f} ± 0.00 / {regret:.2f} ± 0.00 |" in fixed
    random = row(study, "random", "falling", 8)
    figures = [random[name] for name in ("regret", "regret_error", "final_regret", "final_regret_error")]
    assert "{:.2f} ± {:.2f} / {:.2f} ± {:.2f}".format(*figures) in falling
    constant = study["students"]["falling"]["constant"]
    assert f"| best constant, {constant['alpha'][0]:.2f} | {constant['regret']:.2f} " in falling
    assert "| fixed-1     | α 1.00 ± 0.00, 100 ± 0 % |" in flat
    assert "best constant" not in flat
    assert "random" not in apart
    assert "best constant, 0.90 and 0.20" in apart


def test_the_picture_has_a_panel_a_student_with_a_line_a_mode(study: dict[str, Any]):
    panels = {axes.get_title(loc="left").strip(): axes for axes in study_figure(study).axes}
    assert list(panels) == ["optimum-0.2", "falling", "flat", "bins-apart"]
    bars = {str(bar.get_label()): bar for bar in panels["falling"].containers if isinstance(bar, ErrorbarContainer)}
    assert list(bars) == ["fixed-0.5", "fixed-1", "random", "aligned-0.6"]
    line = np.column_stack(bars["random"].lines[0].get_data())  # pyright: ignore[reportOptionalMemberAccess]
    assert line.tolist() == [[count, row(study, "random", "falling", count)["regret"]] for count in (4, 8)]
    texts = [text.get_text() for text in panels["optimum-0.2"].texts]
    assert "above: fixed-1 3.7" in texts  # what the panel is too low for
    flat = [np.asarray(bar.lines[0].get_ydata())[0] for bar in panels["flat"].containers if isinstance(bar, ErrorbarContainer)]  # pyright: ignore[reportOptionalMemberAccess]
    assert flat[:2] == [0.0, 1.0]
