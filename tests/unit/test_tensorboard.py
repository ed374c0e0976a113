"""A run in TensorBoard: every metric, in charts of one unit, pictures when due, samples, settings; and nothing of it ends a training."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdowns_to_safe_html
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # pyright: ignore[reportAttributeAccessIssue]

from megatron_atesd.config import MonitorConfig, TrainConfig, save_config
from megatron_atesd.report import history_figures, pictures
from megatron_atesd.report.layout import CHARTS, layout
from megatron_atesd.report.legend import LEGEND, Metric, pattern
from megatron_atesd.report.monitor import Monitor
from megatron_atesd.report.samples import as_tensorboard_text
from tests.support.run_record import SAMPLE, update_metrics

NO_PICTURES = MonitorConfig(figure_every=0)


def write_run(run_dir: Path, updates: range, config: MonitorConfig = NO_PICTURES, total: int = 10, mode: str = "learned") -> None:
    with Monitor(run_dir, total, config, is_main=True, start=updates.start - 1) as monitor:
        for update in updates:
            monitor.log(update, update_metrics(update, mode))


def events(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir / "tensorboard"), purge_orphaned_data=True).Reload()


def charts(run_dir: Path) -> dict[str, list[str]]:
    """Chart → regular expressions, of the layout that TensorBoard goes by."""
    latest = events(run_dir).Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    found = Layout.FromString(latest)
    return {chart.title: list(chart.multiline.tag) for category in found.category for chart in category.chart}


def test_tensorboard_holds_every_metric(tmp_path: Path):
    write_run(tmp_path, range(1, 2))
    written = events(tmp_path)
    assert {name: written.Scalars(name)[0].value for name in written.Tags()["scalars"]} == pytest.approx(update_metrics(1))


def test_tensorboard_of_a_resumed_run_has_each_update_once(tmp_path: Path):
    write_run(tmp_path, range(1, 6))
    write_run(tmp_path, range(4, 8))
    assert [event.step for event in events(tmp_path).Scalars("distill/loss")] == [1, 2, 3, 4, 5, 6, 7]


def test_everything_is_in_one_folder_so_that_a_run_is_one_run(tmp_path: Path):
    write_run(tmp_path, range(1, 11))
    assert [path.name[:19] for path in (tmp_path / "tensorboard").iterdir()] == ["events.out.tfevents"]


def test_pictures_are_drawn_when_due_and_at_the_end(tmp_path: Path):
    write_run(tmp_path, range(1, 6), MonitorConfig(figure_every=2), total=5)
    written = events(tmp_path)
    names = {"policy", "policy_over_updates", "alpha_and_reward"}
    assert set(written.Tags()["images"]) == {f"exposure/{name}" for name in names} | {"distill/kl_by_position", "rollout/lengths"}
    assert {tuple(image.step for image in written.Images(name)) for name in written.Tags()["images"]} == {(2, 4, 5)}


def test_the_scores_of_exposures_are_drawn_with_the_alpha_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[Any] = []
    scores_figure = pictures.scores_figure
    monkeypatch.setattr(pictures, "scores_figure", lambda *values: seen.append(values) or scores_figure(*values))
    write_run(tmp_path, range(1, 4), MonitorConfig(figure_every=2), mode="aligned")
    assert [(update, scores[0.5], alpha, sd) for update, scores, alpha, sd in seen] == [(2, 1.0, 0.5, None)]


def test_the_policy_picture_shows_every_alpha_of_the_run_also_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []
    beta_figure = pictures.beta_figure
    monkeypatch.setattr(pictures, "beta_figure", lambda *values: seen.append(len(values[3])) or beta_figure(*values))
    write_run(tmp_path, range(1, 4))
    write_run(tmp_path, range(3, 4), MonitorConfig(figure_every=3))
    assert seen == [3]


def test_without_matplotlib_it_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_run(tmp_path, range(1, 4), MonitorConfig(figure_every=1))
    assert capsys.readouterr().out.count("matplotlib") == 1


def test_a_picture_that_cannot_be_drawn_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(history_figures, "lengths", lambda *_: 1 / 0)
    write_run(tmp_path, range(1, 4), MonitorConfig(figure_every=1))
    assert capsys.readouterr().err.count("ZeroDivisionError") == 1
    assert [event.step for event in events(tmp_path).Scalars("distill/loss")] == [1, 2, 3]


def test_a_chart_has_one_unit():
    units = {metric.name: metric.unit for metric in LEGEND}
    mixed = {title: names for group in CHARTS.values() for title, names in group.items() if len({units[name] for name in names}) > 1}
    assert mixed == {}


def test_every_metric_of_the_legend_has_one_chart():
    found = [line for group in layout({metric.name for metric in LEGEND}).values() for _, lines in group.values() for line in lines]
    assert sorted(found) == sorted(rf"(bin\d+/)?{pattern(metric.name)}$" for metric in LEGEND)


def test_a_metric_that_others_add_to_the_legend_has_a_chart():
    new = Metric("eval/<file>/average_at_k", "evaluation", "share", "Average@k.")
    (expression,) = layout({new.name}, (*LEGEND, new))["evaluation"]["eval/<file>/average_at_k (share)"][1]
    assert re.match(expression, "eval/aime24/average_at_k")


def test_a_chart_finds_the_metrics_of_bins_and_no_other_names(tmp_path: Path):
    write_run(tmp_path, range(1, 2))
    _, kl = charts(tmp_path)["loss and KL (nats per token)"]
    assert re.match(kl, "bin1/distill/kl")
    assert not re.match(kl, "distill/kl_at/1")


def test_a_chart_comes_with_its_first_metric(tmp_path: Path):
    with Monitor(tmp_path, 10, NO_PICTURES, is_main=True, start=0) as monitor:
        monitor.log(1, {"distill/loss": 1.0})
        monitor.log(2, {"distill/loss": 1.0, "probe/nll": 1.0})
    assert list(charts(tmp_path)) == ["loss and KL (nats per token)", "NLL of the probe (nats per token)"]


def test_settings_stand_beside_the_metrics(tmp_path: Path):
    save_config(TrainConfig(), tmp_path / "config.yaml")
    write_run(tmp_path, range(1, 3), total=2)
    metadata = events(tmp_path).summary_metadata
    begin = HParamsPluginData.FromString(metadata["_hparams_/session_start_info"].plugin_data.content).session_start_info
    assert begin.hparams["exposure.mode"].string_value == TrainConfig().exposure.mode
    experiment = HParamsPluginData.FromString(metadata["_hparams_/experiment"].plugin_data.content).experiment
    assert "rollout/accuracy" in {info.name.tag for info in experiment.metric_infos}
    assert "_hparams_/session_end_info" in metadata


def test_an_unfinished_run_has_no_end(tmp_path: Path):
    write_run(tmp_path, range(1, 3), total=3)
    assert "_hparams_/session_end_info" not in events(tmp_path).summary_metadata


def test_a_sample_is_text_and_a_picture(tmp_path: Path):
    with Monitor(tmp_path, 10, MonitorConfig(), is_main=True, start=0) as monitor:
        monitor.sample(SAMPLE)
    written = events(tmp_path)
    assert [image.step for image in written.Images("samples/kl_of_each_token")] == [3]
    assert [event.step for event in written.Tensors("samples/response/text_summary")] == [3]


def test_tensorboard_shows_a_sample_as_it_is(tmp_path: Path):
    shown = markdowns_to_safe_html([as_tensorboard_text(SAMPLE)], "".join)
    assert "<td>What is 2 * 3 * 1,<br><br># for `x` &amp; _x_ &lt; 2? (p&lt;1&gt;)</td>" in shown
    assert "2 * 3 =<strong><br></strong><strong>&lt;script&gt;alert(1)&lt;/script&gt;</strong>" in shown
