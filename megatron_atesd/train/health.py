"""A run's watch over its health: rank 0 sees the metrics, tells and records alarms; one of health.stop_on ends the run on all ranks."""

from collections.abc import Callable, Mapping
from pathlib import Path

from megatron_atesd.checkpoint.reading import read_plain_values
from megatron_atesd.config import TrainConfig
from megatron_atesd.errors import TrainingError
from megatron_atesd.parallel.groups import from_rank_0, is_main
from megatron_atesd.report.health import Alarm, HealthWatch
from megatron_atesd.report.monitor import keep_lines_until, lines_until


class Health:
    """The alarms of one run; those told before are in <run.dir>/health.jsonl, one a line. Create it on every rank."""

    def __init__(self, config: TrainConfig, checkpoint: Path | None) -> None:
        """checkpoint: what the run goes on from. The watch then knows what metrics.jsonl tells of the updates until there.

        Raises TrainingError on all ranks when an alarm of health.stop_on held there, before the last update, and the settings still have
        the run end for it: a job that is started again and again does no work. Collective.
        """
        self.config = config
        self.path = Path(config.run.dir) / "health.jsonl"
        self.watch = HealthWatch(config) if is_main() else None
        self.news: list[Alarm] = []
        self.ending: Alarm | None = None
        if self.watch is not None:
            start = 0 if checkpoint is None else int(read_plain_values(checkpoint)["run"]["update"])
            for line in lines_until(self.path.with_name("metrics.jsonl"), start):
                self.watch.observe(line["update"], line)
            keep_lines_until(self.path, start)
        self._agree()
        if self.ending is not None and checkpoint is not None and self.ending.update < config.run.updates:
            raise self.error(checkpoint)

    def after(self, update: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Look at the metrics of a finished update; returns health/<alarm> of each alarm on rank 0, {} elsewhere. Collective."""
        self.news = self.watch.observe(update, metrics) if self.watch else []
        self._agree()
        return self.watch.metrics() if self.watch else {}

    def tell(self, say: Callable[[str], None]) -> None:
        """Say which alarms have just gone off, and record them."""
        for alarm in self.news:
            say(str(alarm))
        if self.news:
            with self.path.open("a") as file:
                file.writelines(alarm.line() for alarm in self.news)

    def ends(self) -> bool:
        """Whether an alarm of health.stop_on holds, on all ranks alike."""
        return self.ending is not None

    def error(self, checkpoint: Path) -> TrainingError:
        """What to tell the user of the end. checkpoint: the newest one."""
        assert self.ending is not None
        alarm = self.ending
        return TrainingError(
            f"the alarm {alarm.alarm} of health.stop_on ended the run after update {alarm.update}: {alarm.message} "
            f"(health.{alarm.alarm} {alarm.threshold:g}). {alarm.remedy} Nothing is lost: {checkpoint} holds the state; the same command "
            f"goes on with {alarm.alarm} taken out of health.stop_on, or with another health.{alarm.alarm}"
        )

    def _agree(self) -> None:
        if self.config.health.stop_on:
            self.ending = from_rank_0(self.watch.ending() if self.watch else None)
