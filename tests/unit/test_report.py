"""Pictures: what is drawn is what was measured. The tests read the data back from the axes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_atesd.errors import DataError
from megatron_atesd.report import pictures, run_figures

ROOT = Path(__file__).resolve().parents[2]


def write_run(run_dir: Path, alphas: list[float], learned: bool = False) -> Path:
    run_dir.mkdir(parents=True)
    with (run_dir / "metrics.jsonl").open("w") as file:
        for update, alpha in enumerate(alphas, 1):
            metrics: dict[str, Any] = {"update": update, "distill/kl": 1 / update, "exposure/alpha": alpha, "probe/nll": 2.0 - update / 10}
            if learned and update > 1:
                metrics |= {"exposure/a": 1.5 + update, "exposure/b": 2.0}
            file.write(json.dumps(metrics) + "\n")
    return run_dir


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    return {
        "fixed": write_run(tmp_path / "fixed", [1.0] * 4),
        "learned": write_run(tmp_path / "learned", [0.5, 0.6, 0.7, 0.8], learned=True),
    }


def titled(figure: Figure, start: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_title(loc="left").startswith(start))


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def data_of(line: Any) -> list[list[float]]:
    """The [x, y] pairs of a drawn line."""
    return [[round(float(x), 6), round(float(y), 6)] for x, y in line.get_xydata()]


def test_each_run_is_drawn_as_it_was_logged(runs: dict[str, Path]):
    axes = titled(run_figures.run_figure(runs), "Reveal ratio")
    drawn = {str(line.get_label()): data_of(line) for line in axes.lines}
    assert drawn == {"fixed": [[u, 1.0] for u in (1, 2, 3, 4)], "learned": [[1, 0.5], [2, 0.6], [3, 0.7], [4, 0.8]]}


def test_a_run_has_one_colour_in_every_panel(runs: dict[str, Path]):
    figure = run_figures.run_figure(runs)
    for start in ("Teacher", "Reveal", "Probe"):
        assert {line.get_label(): line.get_color() for line in titled(figure, start).lines} == dict(
            zip(runs, pictures.PALETTE, strict=False)
        )
    assert {line.get_color() for line in titled(figure, "Exposure policy").lines} == {pictures.PALETTE[1]}


def test_several_runs_get_one_legend_of_their_names(runs: dict[str, Path]):
    assert [text.get_text() for text in run_figures.run_figure(runs).legends[0].get_texts()] == ["fixed", "learned"]


def test_a_long_noisy_curve_is_drawn_pale_with_its_trailing_mean(tmp_path: Path):
    alphas = [0.0, 1.0] * 20
    raw, mean = titled(run_figures.run_figure({"run": write_run(tmp_path / "run", alphas)}), "Reveal ratio, trailing mean").lines
    assert [y for _, y in data_of(raw)] == alphas
    assert [y for _, y in data_of(mean)[:4]] == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2], abs=1e-6)


def test_a_run_without_policy_has_no_density_panel(tmp_path: Path):
    assert titles(run_figures.run_figure({"run": write_run(tmp_path / "run", [1.0])})) == [
        title for title, _, _ in run_figures.CURVES.values()
    ]


def test_the_densities_are_those_of_the_first_and_last_decision(runs: dict[str, Path]):
    start, end = titled(run_figures.run_figure(runs), "Exposure policy, learned").lines
    alpha = np.linspace(0, 1, pictures.GRID_POINTS)
    np.testing.assert_allclose(np.asarray(start.get_ydata(), dtype=float), pictures.beta_density(3.5, 2.0, alpha))
    np.testing.assert_allclose(np.asarray(end.get_ydata(), dtype=float), pictures.beta_density(5.5, 2.0, alpha))
    assert (start.get_linestyle(), end.get_linestyle()) == ("--", "-")


def test_beta_density_by_hand_and_its_integral():
    assert pictures.beta_density(2.0, 2.0, np.array([0.0, 0.5, 1.0])) == pytest.approx([0.0, 1.5, 0.0])
    alpha = np.linspace(0, 1, 20001)
    assert np.trapezoid(pictures.beta_density(6.5, 1.4, alpha), alpha) == pytest.approx(1, abs=1e-4)


def test_the_policy_figure_marks_each_alpha():
    figure = pictures.beta_figure(10, 2.0, 3.0, [0.2, 0.9])
    assert np.asarray(figure.axes[0].collections[-1].get_offsets())[:, 0].tolist() == [0.2, 0.9]
    assert titles(figure) == ["Exposure policy after update 10"]


def test_the_scores_figure_is_drawn_by_alpha_without_unknown_scores():
    line, used = pictures.scores_figure(5, {1.0: 0.1, 0.5: 0.3, 0.0: float("nan")}, 0.5).axes[0].lines
    assert data_of(line) == [[0.5, 0.3], [1.0, 0.1]]
    assert [x for x, _ in data_of(used)] == [0.5, 0.5]


def test_the_scores_figure_has_a_band_of_one_deviation():
    axes = pictures.scores_figure(5, {0.0: 0.1, 1.0: 0.3}, 1.0, sd=0.2).axes[0]
    corners = np.asarray(axes.collections[0].get_paths()[0].vertices)
    assert (corners.min(axis=0).tolist(), corners.max(axis=0).tolist()) == (pytest.approx([0, -0.1]), pytest.approx([1, 0.5]))


def test_trailing_mean_leaves_gaps_out():
    values = np.array([np.nan, 1.0, np.nan, 3.0, 5.0])
    np.testing.assert_allclose(pictures.trailing_mean(values, 2), [np.nan, 1, 1, 3, 4])


@pytest.mark.parametrize(("content", "reason"), [(None, "cannot be read"), ("", "no update"), ('{"update": 1}\n{"upd', "not JSON")])
def test_an_unusable_run_is_refused(tmp_path: Path, content: str | None, reason: str):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(DataError, match=reason):
        run_figures.load_metrics(tmp_path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[1, 2]", "expected a JSON object of metrics, found list"),
        ("7", "expected a JSON object of metrics, found int"),
        ('{"update": 2, "distill/kl": "high"}', "distill/kl is 'high', must be a number or null"),
        ('{"distill/kl": 1.0}', "has no `update`"),
        ('{"upd', "'{\"upd' is not JSON"),
    ],
)
def test_a_line_that_holds_no_metrics_is_named(tmp_path: Path, line: str, reason: str):
    (tmp_path / "metrics.jsonl").write_text(f'{{"update": 1}}\n{line}\n')
    with pytest.raises(DataError) as refused:
        run_figures.load_metrics(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / 'metrics.jsonl'}:2: {reason}")


def test_a_picture_that_cannot_be_written_is_refused(runs: dict[str, Path], tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write the picture"):
        pictures.save(run_figures.run_figure(runs), tmp_path / "file" / "run.png")


def test_null_is_a_gap(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"update": 1, "distill/kl": null}\n{"update": 2, "distill/kl": 0.5}\n')
    np.testing.assert_array_equal(run_figures.load_metrics(tmp_path)["distill/kl"], [np.nan, 0.5])


def plot_run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tools.plot_run", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT)


def test_the_command_draws_beside_the_metrics(runs: dict[str, Path]):
    done = plot_run(runs["learned"])
    assert (done.returncode, done.stdout) == (0, f"wrote {runs['learned'] / 'run.png'}\n")
    assert (runs["learned"] / "run.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_refuses_several_runs_without_a_name_for_the_picture(runs: dict[str, Path]):
    done = plot_run(*runs.values())
    assert (done.returncode, "--out" in done.stderr) == (2, True)
