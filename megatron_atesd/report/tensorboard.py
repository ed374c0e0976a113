"""A run in TensorBoard: scalars in a layout, pictures of the run so far, sample responses, settings beside the last metrics.

All of it lies in one folder of events, <run>/tensorboard, so that many runs stand side by side. What cannot be drawn ends no training.
"""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_atesd.report.layout import guide, layout
from megatron_atesd.report.legend import describe, scores_of
from megatron_atesd.report.run_files import KEY_METRICS, key_settings, read_settings_of
from megatron_atesd.report.samples import Sample, as_tensorboard_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEEDS_MATPLOTLIB = "they need matplotlib (pip install -e '.[plots]' in this project's checkout)"


class TensorBoard:
    """Writes <run>/tensorboard, on the main rank.

    start: finished updates of the checkpoint that the run goes on from; later events are dropped. total: updates of the whole run.
    figure_every: pictures are drawn every so many updates and after the last one (0: never). tell: says something once.
    """

    def __init__(self, run_dir: Path, start: int, total: int, figure_every: int, tell: Callable[[str], None]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._run_dir, self._total, self._figure_every, self._tell = run_dir, total, figure_every, tell
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start + 1 if start else 0)
        self._logged: set[str] = set()  # names of the legend
        self._writer.add_text("what_metrics_mean", guide(), start)
        experiment, begin, self._end = self._settings()
        for summary in (experiment, begin):
            self._add(summary)

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        """Scalars of a finished update, which metrics.jsonl has already, and the pictures when they are due."""
        self.scalars(update, metrics)
        if self._figure_every and (update % self._figure_every == 0 or update == self._total):
            self._draw(update, metrics)
        if update == self._total:
            self._add(self._end)

    def scalars(self, update: int, metrics: Mapping[str, float]) -> None:
        """Values alone, in the layout; also of what was measured after `log`."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, update)
        self._lay_out(update, metrics)

    def sample(self, sample: Sample) -> None:
        """The response as text with its strongest tokens in bold, and as a picture with the KL of each token as colour."""
        self._writer.add_text("samples/response", as_tensorboard_text(sample), sample.update)
        if self._figure_every:
            self._safely(lambda: self._add_strip(sample))

    def close(self) -> None:
        self._writer.close()

    def _settings(self) -> Any:
        """What TensorBoard's page of hyperparameters reads: the run's settings with the names of metrics, whose last values it shows beside
        them, its begin, and its good end."""
        from torch.utils.tensorboard.summary import hparams

        return hparams(key_settings(read_settings_of(self._run_dir)), dict.fromkeys(KEY_METRICS, 0.0))

    def _add(self, summary: Any, update: int = 0) -> None:
        self._writer._get_file_writer().add_summary(summary, update)  # add_hparams would open a second folder, a run of its own

    def _lay_out(self, update: int, metrics: Mapping[str, float]) -> None:
        """TensorBoard goes by the latest layout: there is a new one when something was logged for the first time."""
        from torch.utils.tensorboard.summary import custom_scalars

        found = {entry.name for name in metrics if (entry := describe(name))}
        if not found <= self._logged:
            self._logged |= found
            self._add(custom_scalars(layout(self._logged)), update)

    def _add_strip(self, sample: Sample) -> None:
        from megatron_atesd.report.heat_figure import heat_figure

        self._writer.add_figure("samples/kl_of_each_token", heat_figure(sample), sample.update)

    def _draw(self, update: int, metrics: Mapping[str, float]) -> None:
        def draw() -> None:
            for name, figure in self._figures(update, metrics).items():
                self._writer.add_figure(name, figure, update)

        self._safely(draw)

    def _figures(self, update: int, metrics: Mapping[str, float]) -> "dict[str, Figure]":
        from megatron_atesd.report import pictures
        from megatron_atesd.report.history_figures import history_figures
        from megatron_atesd.report.run_figures import load_metrics

        history = load_metrics(self._run_dir)
        figures: dict[str, Figure] = {}
        if "exposure/a" in metrics:
            alphas = history["exposure/alpha"].tolist()
            figures["exposure/policy"] = pictures.beta_figure(update, metrics["exposure/a"], metrics["exposure/b"], alphas)
        if scores := scores_of(metrics):
            sd = metrics.get("controller/posterior_sd")
            figures["exposure/scores"] = pictures.scores_figure(update, scores, metrics["exposure/alpha"], sd)
        return figures | {name: drawing.figure for name, drawing in history_figures(history).items()}

    def _safely(self, draw: Callable[[], None]) -> None:
        """Draw, or say once why not: a picture is not worth a training."""
        if importlib.util.find_spec("matplotlib") is None:
            self._tell(f"no pictures in TensorBoard: {NEEDS_MATPLOTLIB}")
            return
        try:
            draw()
        except Exception as error:
            self._tell(f"warning: a picture for TensorBoard could not be drawn ({type(error).__name__}: {error}); training goes on")
