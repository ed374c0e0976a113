"""Pictures of a whole run: what is drawn is what was measured. The tests read the data back from the axes."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.figure import Figure

from megatron_atesd.report import history_figures
from megatron_atesd.report.compare_figures import compare_figures
from megatron_atesd.report.inline_svg import inline_svg
from megatron_atesd.report.pictures import GRID_POINTS, PALETTE, beta_density
from megatron_atesd.report.run_figures import Metrics, load_metrics
from tests.support.run_record import save_run


@pytest.fixture
def learned(tmp_path: Path) -> Metrics:
    return load_metrics(save_run(tmp_path / "learned", updates=40))


def ys(figure: Figure, axes: int = 0) -> list[np.ndarray]:
    return [np.asarray(line.get_ydata(), dtype=float) for line in figure.axes[axes].lines]


def test_a_run_has_the_pictures_that_it_has_the_metrics_for(tmp_path: Path, learned: Metrics):
    of_all = {"distill/kl_by_position", "rollout/lengths"}
    assert history_figures.history_figures(learned).keys() == of_all | {"exposure/policy_over_updates", "exposure/alpha_and_reward"}
    aligned = load_metrics(save_run(tmp_path / "aligned", mode="aligned"))
    assert history_figures.history_figures(aligned).keys() == of_all | {"exposure/scores_over_updates"}
    assert history_figures.history_figures({"update": np.arange(3.0)}) == {}


def test_each_difficulty_bin_has_its_exposure_pictures(learned: Metrics):
    binned = {name if name == "update" else f"bin1/{name}": values for name, values in learned.items()}
    drawn = history_figures.history_figures(binned)
    assert drawn.keys() == {"exposure/policy_over_updates_bin1", "exposure/alpha_and_reward_bin1"}
    assert drawn["exposure/alpha_and_reward_bin1"].figure.axes[0].get_title(loc="left").endswith(": bin 1")


def test_ridges_are_the_densities_of_updates_from_the_first_to_the_last(learned: Metrics):
    ridges = ys(history_figures.policy_ridges(learned).figure)[::-1]  # the last one is drawn first
    alpha = np.linspace(0, 1, GRID_POINTS)
    first, last = beta_density(2.0, 2.0, alpha), beta_density(41.0, 2.0, alpha)
    assert len(ridges) == history_figures.RIDGES
    np.testing.assert_allclose(ridges[0], 2.2 * first / last.max())
    np.testing.assert_allclose(ridges[-1], history_figures.RIDGES - 1 + 2.2 * last / last.max())


def test_a_decision_is_drawn_with_its_own_reward(learned: Metrics):
    learned["controller/reward"][:37] = np.nan
    figure = history_figures.alpha_and_reward(learned).figure
    (dots,) = [found for found in figure.axes[0].collections if isinstance(found, PathCollection)]
    np.testing.assert_allclose(np.asarray(dots.get_offsets()), [[3.8, 7.6], [3.9, 7.8], [4.0, 8.0]])
    np.testing.assert_allclose(np.asarray(dots.get_array()), [38, 39, 40])


def test_scores_are_scaled_by_the_largest_of_their_update(tmp_path: Path):
    aligned = load_metrics(save_run(tmp_path / "run", updates=3, mode="aligned"))
    figure = history_figures.scores_map(aligned).figure
    (mesh,) = [found for found in figure.axes[0].collections if isinstance(found, QuadMesh)]
    np.testing.assert_allclose(np.ma.filled(np.ma.asarray(mesh.get_array()), np.nan), [[-1.0] * 3, [0.5] * 3, [np.nan] * 3])


def test_the_kl_by_position_is_the_mean_of_each_fifth_of_the_run(learned: Metrics):
    figure = history_figures.kl_by_position(learned).figure
    means = [np.mean([1 / update for update in range(8 * stage + 1, 8 * stage + 9)]) for stage in range(5)]
    np.testing.assert_allclose(ys(figure), [[0.5, mean] for mean in means])


def test_a_position_that_no_response_reached_is_a_gap(learned: Metrics):
    learned["distill/kl_at/4"] = np.full(40, np.nan)
    learned["distill/kl_at/4"][-1] = 3.0
    drawn = ys(history_figures.kl_by_position(learned).figure)
    np.testing.assert_array_equal([line[-1] for line in drawn], [np.nan] * 4 + [3.0])


def test_lengths_are_a_band_and_a_median(learned: Metrics):
    figure = history_figures.lengths(learned).figure
    band = np.asarray(figure.axes[0].collections[0].get_paths()[0].vertices)
    assert (band[:, 1].min(), band[:, 1].max()) == (2.0, 8.0)
    assert (set(ys(figure)[0]), set(ys(figure, 1)[0])) == ({4.0}, {0.25})


def test_curves_have_one_colour_a_run(tmp_path: Path, learned: Metrics):
    runs = {"a": learned, "b": load_metrics(save_run(tmp_path / "b", mode="fixed"))}
    drawn = compare_figures(runs)
    assert list(drawn) == ["rollout/accuracy", "probe/nll", "distill/kl", "exposure/alpha"]
    assert [line.get_color() for line in drawn["probe/nll"].figure.axes[0].lines] == list(PALETTE[:2])


def test_an_evaluation_during_training_is_one_picture_with_its_interval():
    nan = np.nan
    values = {
        "average_at_k": [nan, 0.5, nan, 0.6],
        "ci_low": [nan, 0.4, nan, 0.5],
        "ci_high": [nan, 0.6, nan, 0.8],
        "answered": [nan, 1, nan, 1],
    }
    metrics = {"update": np.arange(1.0, 5.0)} | {f"eval/a/{name}": np.array(column) for name, column in values.items()}
    drawn = compare_figures({"run": metrics})
    assert list(drawn) == ["eval/a/average_at_k"]
    axes = drawn["eval/a/average_at_k"].figure.axes[0]
    band = np.asarray(axes.collections[0].get_paths()[0].vertices)
    assert (band[:, 0].min(), band[:, 0].max(), band[:, 1].min(), band[:, 1].max()) == (2, 4, 0.4, 0.8)


def test_a_picture_in_a_page_has_text_and_the_colours_of_the_page(learned: Metrics):
    svg = inline_svg(history_figures.lengths(learned, "a<b").figure, "lengths")
    assert svg.startswith("<svg")
    assert ">Lengths of responses: a&lt;b</text>" in svg
    assert "var(--ink)" in svg
    assert "#222222" not in svg
