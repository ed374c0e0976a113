"""Metrics of a run as the watch over its health sees them: flat ones, and those of healthy quickstart runs (healthy_quickstart.tsv)."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_atesd.config import DataConfig, ExposureConfig, HealthConfig, TrainConfig
from megatron_atesd.report.health import Alarm, HealthWatch

WINDOW = 4
WELL = {
    "distill/kl": 0.1,
    "student/entropy": 0.5,
    "rollout/length": 100.0,
    "rollout/truncated": 0.0,
    "rollout/loops": 0.0,
    "rollout/leakage": 0.0,
    "rollout/exploration": 20.0,
    "rollout/logprob_gap": 1e-6,
    "exposure/alpha": 1.0,
}
Metrics = Mapping[str, float | None]


def config_of(exposure: ExposureConfig | None = None, **health: Any) -> TrainConfig:
    """Of a run with eight rollouts an update and a window of four; no controller unless `exposure` says otherwise."""
    settings = TrainConfig(health=HealthConfig(**{"window": WINDOW, **health}), data=DataConfig(batch=8))
    return replace(settings, exposure=exposure or ExposureConfig(mode="fixed"))


def alarms_of(config: TrainConfig, series: Iterable[Metrics]) -> list[Alarm]:
    """Those that go off in updates 1, 2, … with these metrics."""
    watch = HealthWatch(config)
    return [alarm for update, metrics in enumerate(series, 1) for alarm in watch.observe(update, metrics)]


def names_of(config: TrainConfig, series: Iterable[Metrics]) -> list[tuple[int, str]]:
    """After which update which alarm went off."""
    return [(alarm.update, alarm.alarm) for alarm in alarms_of(config, series)]


def read_healthy() -> dict[str, list[dict[str, float]]]:
    """Exposure mode → metrics of its updates."""
    lines = (Path(__file__).parent / "healthy_quickstart.tsv").read_text().splitlines()
    names, runs = lines[0].split("\t")[1:], dict[str, list[dict[str, float]]]()
    for line in lines[1:]:
        mode, *values = line.split("\t")
        runs.setdefault(mode, []).append({name: float(value) for name, value in zip(names, values, strict=True) if value})
    return runs
