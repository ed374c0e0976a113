"""The picture of the mismatch shows what mismatch.json says; the tests read it back from the axes."""

from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer

from megatron_atesd.report.mismatch_figure import mismatch_figure

ROWS = [
    {"alpha": 0.0, "kl": 0.1, "disagreement": 0.02, "teacher_entropy": 0.5, "grounding": -0.4, "revealed": 0.0, "segments": 3.0},
    {"alpha": 0.5, "kl": 0.3, "disagreement": 0.04, "teacher_entropy": 0.4, "grounding": -0.2, "revealed": 1.5, "segments": 3.0},
    {"alpha": 1.0, "kl": 0.2, "disagreement": 0.05, "teacher_entropy": 0.3, "grounding": -0.1, "revealed": 3.0, "segments": 3.0},
]


def record(p_value: float, without: str = "") -> dict[str, Any]:
    rows = [{name: value for name, value in row.items() if name != without} for row in ROWS]
    rows = [row | {"errors": {name: abs(value) / 10 for name, value in row.items()}} for row in rows]
    steps = [
        {"from": 0.0, "to": 0.5, "rise": 0.2, "p_value": 2e-5},
        {"from": 0.5, "to": 1.0, "rise": -0.1, "p_value": p_value},
    ]
    settings = {"exposure": {"grounding": "answer"}}
    return {"rows": rows, "steps": steps, "monotone_p": p_value, "problems": 7, "tokens": 90, "settings": settings}


def bars(axes: Axes) -> list[list[float]]:
    """α, mean and error of each point."""
    (found,) = (container for container in axes.containers if isinstance(container, ErrorbarContainer))
    alpha, mean = found.lines[0].get_data()  # pyright: ignore[reportOptionalMemberAccess]
    ends = [segment[:, 1] for segment in found.lines[2][0].get_segments()]
    return np.column_stack((alpha, mean, [(high - low) / 2 for low, high in ends])).tolist()


def test_each_statistic_has_its_panel_with_errors() -> None:
    panels = {axes.get_title(loc="left"): bars(axes) for axes in mismatch_figure(record(0.9)).axes}
    assert panels["KL(teacher ‖ student)"] == [pytest.approx([row["alpha"], row["kl"], row["kl"] / 10]) for row in ROWS]
    assert panels["Most likely token differs"][2] == pytest.approx([1.0, 5.0, 0.5])
    assert panels["Teacher's entropy"][0] == pytest.approx([0.0, 0.5, 0.05])
    assert panels["Grounding by the answer"][1] == pytest.approx([0.5, -0.2, 0.02])
    assert len(panels) == 4


def test_what_was_not_measured_has_no_panel() -> None:
    assert len(mismatch_figure(record(0.9, without="grounding")).axes) == 3


def test_steps_have_their_p_values_and_the_axis_the_segments() -> None:
    axes = mismatch_figure(record(0.9)).axes[0]
    assert [text.get_text() for text in axes.texts] == ["p < 0.001", "p = 0.9"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0\n0.0", "0.5\n1.5", "1\n3.0"]


@pytest.mark.parametrize(("p_value", "says"), [(0.04, "the KL rises at every step"), (0.06, "not every step of the KL is a clear rise")])
def test_a_rise_is_only_called_one_when_every_step_is_clear(p_value: float, says: str) -> None:
    assert says in mismatch_figure(record(p_value)).get_suptitle()


def test_no_title_overlaps_a_panel_or_leaves_the_page() -> None:
    figure = mismatch_figure(record(0.9))
    figure.draw_without_rendering()
    boxes = [box for axes in figure.axes if (box := axes.get_tightbbox())] + [text.get_window_extent() for text in figure.texts]
    assert [(i, j) for i, one in enumerate(boxes) for j, two in enumerate(boxes) if i < j and one.overlaps(two)] == []
    width, height = figure.bbox.size
    assert all(0 <= box.x0 < box.x1 <= width and 0 <= box.y0 < box.y1 <= height for box in boxes)
