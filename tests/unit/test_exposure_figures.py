"""The pictures of docs/exposure.md show what reveal() reveals and what the study measured."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer

from megatron_atesd.data.reveal import split_reference
from megatron_atesd.report.exposure_figures import ALPHAS, EXAMPLE, exposure_effect_figure, reveal_figure

STUDY = Path(__file__).resolve().parents[2] / "examples" / "mini_study" / "side" / "results.json"


def test_a_row_more_shows_a_segment_more_and_each_row_the_answer():
    (axes,) = reveal_figure().axes
    words = [text.get_text() for text in axes.texts]
    segments = len(split_reference(EXAMPLE).segments)
    assert words.count(EXAMPLE.answer) == len(ALPHAS)
    assert words.count("hidden") == sum(segments - shown for shown in range(segments + 1))


@pytest.mark.parametrize(("panel", "name", "scale"), [(0, "accuracy", 100), (1, "probe_nll", -1)])
def test_a_curve_is_the_mean_over_bases(panel: int, name: str, scale: float):
    results = json.loads(STUDY.read_text(encoding="utf-8"))
    axes = exposure_effect_figure(results).axes[panel]
    late = next(bars for bars in axes.containers if isinstance(bars, ErrorbarContainer) and "skip" in str(bars.get_label()))
    changes = [check["changes"] for check in results["checks"] if check["task"] == "late" and check["lead"] == 0]
    means = [np.mean([scale * row[name] for rows in changes for row in rows if row["alpha"] == alpha]) for alpha in ALPHAS]
    points = np.array(late.lines[0].get_xydata())  # pyright: ignore[reportOptionalMemberAccess]
    assert points == pytest.approx(np.column_stack((ALPHAS, means)))
