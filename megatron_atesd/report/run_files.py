"""What a finished or unfinished run has left beside its metrics, read with care: settings, evaluations. Missing files are no errors."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from megatron_atesd.config import TrainConfig

# Settings that stand beside the metrics of every run; of some sections also whatever differs from the defaults.
KEY_SETTINGS = (
    "model.path",
    "exposure.mode",
    "exposure.fixed",
    "exposure.progress",
    "lora.rank",
    "optimizer.lr",
    "data.batch",
    "run.seed",
    "run.updates",
    "rollout.max_new_tokens",
    "rollout.temperature",
)
KEY_SECTIONS = ("exposure", "distill", "lora", "optimizer", "schedule", "rollout")
KEY_METRICS = (
    "rollout/accuracy",
    "probe/nll",
    "distill/kl",
    "exposure/alpha",
    "rollout/length",
    "probe/progress",
    "probe/accuracy",
    "distill/loss",
    "student/entropy",
    "rollout/truncated",
    "time/step",
    "perf/tokens_per_second",
    "memory/peak_gib",
)


def names_of(runs: list[Path]) -> dict[str, Path]:
    """Each run by its folder's name, or by its whole path where two folders share a name."""
    names = [run.resolve().name for run in runs]
    return {name if names.count(name) == 1 else str(run): run for name, run in zip(names, runs, strict=True)}


def read_settings_of(run: Path) -> dict[str, Any]:
    """Every setting of RUN/config.yaml by its dotted name; {} without a readable one. `versions.*`: what produced the run."""
    try:
        return flat(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted names."""
    if not isinstance(settings, Mapping) or (prefix and not settings):
        return {prefix: settings} if prefix else {}
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}.{name}" if prefix else str(name))
    return found


@cache
def default_settings() -> Mapping[str, Any]:
    """Every setting by its dotted name, as it is where nobody sets it."""
    return flat(asdict(TrainConfig()))


def changed_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those that differ from the defaults, versions aside."""
    defaults = default_settings()
    settings = {name: value for name, value in settings.items() if not name.startswith("versions.")}
    return {name: value for name, value in settings.items() if name not in defaults or _plain(defaults[name]) != _plain(value)}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def key_settings(settings: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """What tells runs apart: KEY_SETTINGS, and of KEY_SECTIONS whatever differs from the defaults."""
    changed = [name for name in changed_settings(settings) if name.split(".")[0] in KEY_SECTIONS]
    names = [name for name in dict.fromkeys((*KEY_SETTINGS, *changed)) if settings.get(name) is not None]
    return {name: value if isinstance(value := settings[name], bool | int | float | str) else str(value) for name in names}


def evaluations(run: Path) -> dict[str, dict[str, Any]]:
    """evaluation.json of every folder below RUN, by the folder's path, steps in order; none of a course that the run has left."""
    found = (path.parent.relative_to(run) for path in run.rglob("evaluation.json"))
    folders = sorted((str(folder) for folder in found if ".aside" not in folder.name), key=_by_number)
    return {name: found for name in folders if (found := read_object(run / name / "evaluation.json"))}


def _by_number(name: str) -> tuple[str, int]:
    head, _, tail = name.rpartition("_")
    return (head, int(tail)) if tail.isdigit() else (name, 0)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
