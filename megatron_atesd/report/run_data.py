"""One run as its report sees it: metrics, settings, samples, evaluations, and the numbers that are told of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_atesd.report.phases import Phases, phases_of
from megatron_atesd.report.run_figures import Metrics, load_metrics
from megatron_atesd.report.run_files import evaluations, read_settings_of
from megatron_atesd.report.samples import Sample, read_samples

SAMPLES_SHOWN = 6


@dataclass(frozen=True)
class RunData:
    """settings: by dotted name, `versions.*` with them. samples: SAMPLES_SHOWN at most. evaluations: by folder."""

    folder: Path
    metrics: Metrics
    settings: dict[str, Any]
    samples: list[Sample]
    evaluations: dict[str, dict[str, Any]]

    def start_and_end(self, name: str) -> tuple[float, float]:
        """Means of a metric's first and last tenth of measured values; NaN where there is none."""
        values = self.metrics.get(name, np.array([]))
        values = values[np.isfinite(values)]
        if not len(values):
            return np.nan, np.nan
        part = max(1, len(values) // 10)
        return float(values[:part].mean()), float(values[-part:].mean())

    def phases(self) -> Phases:
        """Where the time went, as at the end of the training."""
        known = [name for name in self.metrics if name.startswith(("time/", "perf/", "memory/"))]
        rows = np.column_stack([self.metrics[name] for name in known]) if known else np.zeros((0, 0))
        return phases_of([{name: value for name, value in zip(known, row, strict=True) if np.isfinite(value)} for row in rows.tolist()])

    def headline(self) -> str:
        """What ran, in one line."""
        get, done = self.settings.get, int(self.metrics["update"][-1])
        parts = [f"{done} of {get('run.updates', done)} updates", f"exposure mode {get('exposure.mode', '?')}"]
        if get("model.path"):
            weights = f"LoRA rank {get('lora.rank')}" if get("lora.rank") else "all weights"
            parts.append(f"model {Path(str(get('model.path'))).name} ({get('model.dtype')}, {weights})")
        parts += [self.layout(), f"{duration(self.phases().total)}", f"seed {get('run.seed', '?')}"]
        return " · ".join(part for part in parts if part)

    def layout(self) -> str:
        """Of parallelism: every factor above 1, and the number of processes where it is known."""
        names = {"TP": "tensor", "PP": "pipeline", "CP": "context"}
        factors = {short: int(self.settings.get(f"parallel.{name}") or 1) for short, name in names.items()}
        processes = int(self.settings.get("versions.processes") or 0)
        factors["DP"] = processes // max(1, factors["TP"] * factors["PP"] * factors["CP"])
        told = " × ".join(f"{short} {factor}" for short, factor in factors.items() if factor > 1)
        count = f"{processes} process{'es' if processes != 1 else ''}" if processes else ""
        return f"{told} ({count})" if told and count else told or count


def load_run(folder: Path) -> RunData:
    """Everything of a run directory. Raises DataError when its metrics cannot be read."""
    return RunData(folder, load_metrics(folder), read_settings_of(folder), read_samples(folder, SAMPLES_SHOWN), evaluations(folder))


def duration(seconds: float) -> str:
    """As people say it: 42 s, 3 min 20 s, 5 h 12 min."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.0f} s"
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60:02d} min"
