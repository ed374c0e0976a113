"""What runs leave, made up: a sample response, metrics of updates, a whole run directory."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_atesd.config import TrainConfig, save_config
from megatron_atesd.report.samples import Sample, record_of

SAMPLE = Sample(
    update=3,
    id="p<1>",
    problem="What is 2 * 3 * 1,\n\n# for `x` & _x_ < 2?",
    answer="6",
    alpha=0.5,
    revealed=1,
    segments=2,
    tokens=("2 * 3", " =", "\n", "<script>alert(1)</script>", "<|im_end|>"),
    kl=(0.0, 0.02, 0.5, 4.0, math.nan),
    truncated=False,
    right=True,
)


def update_metrics(update: int, mode: str = "learned") -> dict[str, float]:
    """Of one update; mode: learned, aligned, or another, which has neither policy nor scores."""
    metrics = {"distill/kl": 1 / update, "distill/loss": 0.1, "exposure/alpha": 0.5, "time/step": 2.0, "time/rollout": 1.5}
    metrics |= {"rollout/accuracy": update / 10, "rollout/length_p10": 2.0, "rollout/length_p50": 4.0, "rollout/length_p90": 8.0}
    metrics |= {"rollout/truncated": 0.25, "distill/kl_at/1": 0.5, "distill/kl_at/2": 1.0 / update, "probe/nll": 2.0}
    if mode == "learned":
        metrics |= {"exposure/a": 1.0 + update, "exposure/b": 2.0, "controller/alpha": update / 10, "controller/reward": update / 5}
    if mode == "aligned":
        metrics |= {"controller/score/0": -2.0, "controller/score/0.5": 1.0, "controller/score/1": math.nan}
    return metrics


def save_run(run_dir: Path, updates: int = 8, mode: str = "learned", more: Mapping[str, float] | None = None) -> Path:
    """A run directory with settings, metrics and a sample."""
    run_dir.mkdir(parents=True)
    save_config(TrainConfig(), run_dir / "config.yaml", {"processes": "4"})
    lines = [{"update": update} | update_metrics(update, mode) | dict(more or {}) for update in range(1, updates + 1)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(_finite(line)) + "\n" for line in lines))
    (run_dir / "samples.jsonl").write_text(json.dumps(record_of(SAMPLE)) + "\n")
    return run_dir


def _finite(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value if math.isfinite(value) else None for name, value in line.items()}
