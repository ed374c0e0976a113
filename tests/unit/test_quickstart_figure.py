"""The quickstart's picture and table show what the summary and the metrics say. The tests read the data back from the axes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from examples.quickstart import summarize
from megatron_atesd.errors import DataError
from megatron_atesd.evaluate import average
from megatron_atesd.report.pictures import PALETTE
from megatron_atesd.report.quickstart_figure import quickstart_figure, quickstart_report, relative_scores

MATRIX = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]])
BASE = average.summarize(MATRIX, [1, 0, 0, 1], ["2", "2", "3", "3"])  # 43.75 %
FINAL = average.summarize(np.maximum(MATRIX, [1, 0, 1, 0]), [1, 1, 0, 1], ["2", "2", "3", "3"])  # 68.75 %
SCORES = {0.0: [-1.0, 0.0], 0.5: [0.0, 4.0], 1.0: [1.0, 1.0]}  # of two updates


def write_run(run: Path, alphas: list[float], scores: dict[float, list[float]] | None = None) -> Path:
    run.mkdir(parents=True)
    lines = [{"update": i + 1, "exposure/alpha": alpha} for i, alpha in enumerate(alphas)]
    for i, line in enumerate(lines):
        line |= {f"controller/score/{alpha:.3g}": values[i] for alpha, values in (scores or {}).items()}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


@pytest.fixture
def summary(tmp_path: Path) -> dict[str, Any]:
    """Two tasks, two arms each; training helps, but `fixed` in `late`."""
    runs = {"aligned": write_run(tmp_path / "aligned", [1.0, 0.5], SCORES), "fixed": write_run(tmp_path / "fixed", [1.0, 1.0])}
    arm = {name: {"run": str(run), "base": BASE, "final": FINAL} for name, run in runs.items()}
    tasks = {"late": {"aligned": arm["aligned"], "fixed": arm["fixed"] | {"final": BASE}}, "det": arm}
    return json.loads(json.dumps({"tasks": tasks}))


def panels(figure: Figure, start: str) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_title(loc="left").startswith(start)]


def bars(axes: Axes) -> list[tuple[str, float]]:
    """Colour and length of each arm's bar."""
    found = [bar for container in axes.containers for bar in container if isinstance(bar, Rectangle)]
    return [(to_hex(bar.get_facecolor()).upper(), bar.get_width()) for bar in found]


def test_the_bars_are_the_accuracies_of_the_arms(summary: dict[str, Any]):
    (late,) = panels(quickstart_figure(summary), "late")
    assert bars(late) == [(PALETTE[0], 68.75), (PALETTE[1], 43.75)]
    assert [label.get_text() for label in late.get_yticklabels()] == ["aligned", "α = 1"]


def test_the_gains_are_said_in_words(summary: dict[str, Any]):
    figure = quickstart_figure(summary)
    said = [axes.texts[-1].get_text() for start in ("late", "det") for axes in panels(figure, start)]
    assert said == ["gain over the base: aligned +25.0, α = 1 +0.0 points", "gain over the base: aligned +25.0, α = 1 +25.0 points"]


def test_each_task_has_its_column_of_panels(summary: dict[str, Any]):
    titles = [axes.get_title(loc="left").split()[0] for axes in quickstart_figure(summary).axes]
    assert titles == ["late:", "What", "Scores", "Sampled", "det:", "What", "Scores", "Sampled"]


def test_without_a_controllers_scores_their_panel_is_left_out(summary: dict[str, Any]):
    only = {"tasks": {"late": {"fixed": summary["tasks"]["late"]["fixed"]}}}
    figure = quickstart_figure(only)
    assert [axes.get_title(loc="left").split()[0] for axes in figure.axes] == ["late:", "What", "Sampled"]


def test_a_single_tasks_panels_stand_in_two_columns(summary: dict[str, Any]):
    figure = quickstart_figure({"tasks": {"late": summary["tasks"]["late"]}})
    places = [axes.get_subplotspec() for axes in figure.axes]
    assert [(place.rowspan.start, place.colspan.start) for place in places if place] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_exposure_is_drawn_as_it_was_logged(summary: dict[str, Any]):
    late, _ = panels(quickstart_figure(summary), "What the teacher")
    drawn = {str(line.get_label()): np.asarray(line.get_xydata()).tolist() for line in late.lines}
    assert drawn == {"aligned": [[1, 1.0], [2, 0.5]], "fixed": [[1, 1.0], [2, 1.0]]}


def test_the_map_of_scores_stretches_each_update_from_its_worst_to_its_best(summary: dict[str, Any]):
    late, _ = panels(quickstart_figure(summary), "Scores of `aligned`")
    (shades,) = (mesh for mesh in late.collections if isinstance(mesh, QuadMesh))
    assert np.asarray(shades.get_array()).reshape(3, 2).tolist() == [[0, 0], [0.5, 1], [1, 0.25]]
    assert late.lines[0].get_ydata() == pytest.approx([1.0, 0.5])


def test_unknown_and_equal_scores_have_no_shade():
    scores = np.array([[np.nan, 2.0, 1.0], [np.nan, 2.0, 3.0]])
    np.testing.assert_array_equal(relative_scores(scores), [[np.nan, np.nan, 0], [np.nan, np.nan, 1]])


def test_accuracy_by_difficulty_is_the_summarys_in_percent(summary: dict[str, Any]):
    late, _ = panels(quickstart_figure(summary), "Sampled accuracy")
    series = {str(bars.get_label()): bars for bars in late.containers if isinstance(bars, ErrorbarContainer)}
    drawn = {name: np.asarray(bars.lines[0].get_ydata()).tolist() for name, bars in series.items()}  # pyright: ignore[reportOptionalMemberAccess]
    assert drawn == {"base": [62.5, 25.0], "aligned": [75.0, 62.5], "fixed": [62.5, 25.0]}
    interval = series["aligned"].lines[2][0].get_segments()[0]
    assert [y for _, y in interval] == pytest.approx([100 * end for end in FINAL["by_difficulty"]["2"]["ci95"]])


def test_no_text_overlaps_another(summary: dict[str, Any]):
    figure = quickstart_figure(summary)
    figure.draw_without_rendering()
    head = figure.subfigs[0]
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    boxes += [part.get_window_extent() for part in (*head.legends, *head.texts)]
    clashes = [(i, j) for i, one in enumerate(boxes) for j, two in enumerate(boxes) if i < j and one and two and one.overlaps(two)]
    assert clashes == []


def test_greedy_answers_may_be_missing(summary: dict[str, Any]):
    fixed = summary["tasks"]["late"]["fixed"] | {"final": average.summarize(MATRIX, None, ["2", "2", "3", "3"])}
    (late,) = panels(quickstart_figure({"tasks": {"late": {"fixed": fixed}}}), "late")
    assert [line for line in late.lines if line.get_marker() == "D"] == []


def test_a_missing_figure_is_named(summary: dict[str, Any]):
    del summary["tasks"]["det"]["fixed"]["final"]["by_difficulty"]["3"]["ci95"]
    with pytest.raises(DataError, match=r"tasks\.det\.fixed\.final\.by_difficulty\.3 lacks ci95"):
        quickstart_figure(summary)


@pytest.mark.parametrize("summary", [{}, {"tasks": {"late": {}}}])
def test_no_arm_is_refused(summary: dict[str, Any]):
    with pytest.raises(DataError, match="without arms"):
        quickstart_figure(summary)


def test_the_report_is_a_picture_of_that_figure(summary: dict[str, Any], tmp_path: Path):
    quickstart_report(summary, tmp_path / "new" / "report.svg")
    assert (tmp_path / "new" / "report.svg").read_text().count('id="axes_') == 8


def test_the_table_shows_the_last_exposures_and_what_they_cost():
    arm = {"final": FINAL, "updates": 10, "exposure_trace": [0.0] * 8 + [0.5, 1.0], "exposure_share": 0.125}
    columns = summarize.accuracy_table({"late": {"learned": arm}}, BASE).columns
    interval = " – ".join(f"{100 * end:.1f}" for end in FINAL["ci95"])
    assert [list(column.cells)[-1] for column in columns] == ["late", "learned (paper)", "68.8", interval, "75.0", "0.75", "12.5"]
