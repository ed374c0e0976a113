"""The pictures of a study show what its results say; the tests read the numbers back from the axes."""

from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from megatron_atesd.study.comparison import compare
from megatron_atesd.study.pictures import figures
from tests.unit.test_study_comparison import run

POINTS = {"fixed-0": 0.0, "fixed-1": 1.0}
CHECK = {
    "task": "det", "base": "A", "lead": 5, "updates": 10,
    "changes": [{"alpha": 0.0, "probe_nll": -0.1, "accuracy": 0.1}, {"alpha": 1.0, "probe_nll": -0.3, "accuracy": 0.5}],
}  # fmt: skip


@pytest.fixture
def drawn() -> dict[str, Figure]:
    runs = []
    for task, shift in (("late", 0.0), ("det", 0.1)):
        for base, off in (("A", 0.0), ("B", 0.04)):
            for arm, alpha in POINTS.items():
                signals = {"probe/nll": alpha + off, "rollout/accuracy": 0.3}
                runs.append(
                    run(arm, base, 1, 0.4 + shift + off + alpha / 10, task, alpha=[alpha] * 20, first_kl=alpha + off, signals=signals)
                )
            runs.append(run("moving", base, 1, 0.7 + shift + off, task, alpha=[1.0] * 10 + [0.5] * 10, signals={"probe/nll": 0.1}))
    results: dict[str, Any] = {
        "arms": {**{arm: {"mode": "fixed", "alpha": alpha} for arm, alpha in POINTS.items()}, "moving": {"mode": "aligned", "alpha": None}},
        "tasks": ["late", "det"], "bases": ["A", "B"], "seeds": [1], "fixed": list(POINTS), "references": [], "unit": "base", "update": 20,
        "samples": 4, "planned": 12, "before": [{"task": "late", "base": "A", "sampled": 0.25}], "runs": runs,
        "checks": [CHECK],
    }  # fmt: skip
    return figures(results, compare(results))


def test_a_first_update_that_was_skipped_is_no_point_of_the_mismatch():
    kinds = {"arms": {"fixed-0": {"mode": "fixed", "alpha": 0.0}, "fixed-1": {"mode": "fixed", "alpha": 1.0}}, "fixed": list(POINTS)}
    runs = [run(arm, base, 1, 0.5, first_kl=kl) for arm in POINTS for base, kl in (("A", None), ("B", 0.3))]
    found: dict[str, Any] = kinds | {"tasks": ["late"], "references": [], "unit": "base", "before": [], "runs": runs, "checks": []}
    (axes,) = figures(found, compare(found))["mismatch_against_alpha"].axes
    assert bars(axes)["late"] == [pytest.approx([0, 0.3]), pytest.approx([1, 0.3])]


def bars(axes: Axes) -> dict[str, list[list[float]]]:
    """Points of each series with error bars, by its name."""
    found = [container for container in axes.containers if isinstance(container, ErrorbarContainer)]
    return {str(each.get_label()): np.column_stack(each.lines[0].get_data()).tolist() for each in found}  # pyright: ignore[reportOptionalMemberAccess]


def test_a_signals_fall_is_drawn_against_the_gain_less_the_base_s_mean(drawn: dict[str, Figure]):
    (panel,) = drawn["signals_against_gain"].axes
    (points,) = panel.collections
    assert np.asarray(points.get_offsets()) == pytest.approx(np.array([[-0.1, -20], [0.1, 20]]))
    assert (panel.get_title(loc="left"), points.get_label()) == ("probe_nll", "det, updates 6–15, r = +1.00")


def test_accuracy_is_drawn_over_alpha_and_a_moving_arm_at_its_mean(drawn: dict[str, Figure]):
    late, det = drawn["accuracy_against_alpha"].axes
    assert bars(late)["fixed α"] == [pytest.approx([0, 42]), pytest.approx([1, 52])]
    assert bars(late)["moving"] == [pytest.approx([0.75, 72])]
    assert bars(det)["fixed α"] == [pytest.approx([0, 52]), pytest.approx([1, 62])]
    assert [line.get_ydata() for line in late.lines if line.get_label() == "before training"] == [pytest.approx([25, 25])]


def test_arms_are_sorted_by_accuracy(drawn: dict[str, Figure]):
    late = drawn["accuracy_by_arm"].axes[0]
    assert [label.get_text() for label in late.get_yticklabels()] == ["fixed-0", "fixed-1", "moving"]
    (found,) = (each for each in late.containers if isinstance(each, ErrorbarContainer))
    assert np.asarray(found.lines[0].get_xdata()) == pytest.approx([42, 52, 72])  # pyright: ignore[reportOptionalMemberAccess]


def test_error_bars_are_standard_errors(drawn: dict[str, Figure]):
    late = drawn["accuracy_against_alpha"].axes[0]
    (curve,) = (each for each in late.containers if isinstance(each, ErrorbarContainer) and each.get_label() == "fixed α")
    ends = curve.lines[2][0].get_segments()[0][:, 1]
    assert (ends[1] - ends[0]) / 2 == pytest.approx(100 * np.std([0, 0.04], ddof=1) / np.sqrt(2))


def test_each_difficulty_has_its_curve(drawn: dict[str, Figure]):
    late = drawn["accuracy_by_difficulty"].axes[0]
    assert bars(late) == {
        "difficulty 2": [pytest.approx([0, 42]), pytest.approx([1, 52])],
        "difficulty 3": [pytest.approx([0, 21]), pytest.approx([1, 26])],
    }


def test_mismatch_is_that_of_the_first_update(drawn: dict[str, Figure]):
    (axes,) = drawn["mismatch_against_alpha"].axes
    assert bars(axes)["late"] == [pytest.approx([0, 0.02]), pytest.approx([1, 1.02])]


def test_only_arms_whose_exposure_moves_are_drawn_over_updates(drawn: dict[str, Figure]):
    late = drawn["alpha_over_updates"].axes[0]
    assert [line.get_label() for line in late.lines] == ["moving"]
    assert np.asarray(late.lines[0].get_ydata())[[0, 9, 10, 19]] == pytest.approx([1, 1, 0.75, 0.5])


def test_a_correlation_is_said_and_none_where_a_signal_is_flat(drawn: dict[str, Figure]):
    said = {
        axes.get_title(loc="left"): [str(each.get_label()) for each in axes.collections] for axes in drawn["signals_against_accuracy"].axes
    }
    nll = np.array([[0.0, 0.4], [1.0, 0.5], [0.1, 0.7], [0.04, 0.44], [1.04, 0.54], [0.1, 0.74]])
    centred = np.concatenate([part - part.mean(axis=0) for part in (nll[:3], nll[3:])])
    assert said["probe/nll"][0] == f"late: r = {np.corrcoef(centred.T)[0, 1]:+.2f}"
    assert said["rollout/accuracy"][0] == "late: r = –"


def test_lines_of_alpha_differ_and_a_task_in_which_none_moves_has_no_panel():
    arms = {f"arm-{i}": {"mode": "aligned", "alpha": None} for i in range(17)}
    runs = [run(arm, base, 1, 0.5, alpha=[0.0, i / 16]) for base in "AB" for i, arm in enumerate(arms)]
    runs += [run("arm-0", base, 1, 0.5, "det", alpha=[0.0, 0.0]) for base in "AB"]
    found: dict[str, Any] = {"arms": arms, "fixed": [], "tasks": ["late", "det"], "references": [], "unit": "base", "before": []}
    found |= {"runs": runs, "checks": []}
    late, *others = figures(found, compare(found))["alpha_over_updates"].axes
    assert len({(line.get_color(), line.get_linestyle()) for line in late.lines}) == len(late.lines) == 16
    assert others == []


def test_no_title_or_legend_overlaps_a_panel_or_leaves_the_picture(drawn: dict[str, Figure]):
    for name, figure in drawn.items():
        figure.draw_without_rendering()
        boxes = [axes.get_tightbbox() for axes in figure.axes] + [part.get_window_extent() for part in (*figure.legends, *figure.texts)]
        clashes = [(i, j) for i, one in enumerate(boxes) for j, two in enumerate(boxes) if i < j and one and two and one.overlaps(two)]
        assert clashes == [], name
        whole = figure.bbox.padded(1)
        assert [i for i, box in enumerate(boxes) if box and not (whole.contains(*box.p0) and whole.contains(*box.p1))] == [], name
