"""What a study has found so far: every finished run in plain numbers, read from the folders of bases and runs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_atesd.config.yaml import yaml_document
from megatron_atesd.study.decisive import DECISIVE, checksum
from megatron_atesd.study.design import Check, Run, Study
from megatron_atesd.study.work import SETTINGS, is_evaluated
from megatron_atesd.study.work import SIGNALS as CHECKED

# Logged by every run, whatever its arm. Lower is progress for the first three.
SIGNALS = ("probe/nll", "distill/kl", "student/entropy", "rollout/accuracy")
_LATE = 10  # a signal at the end is its mean over the last tenth of the updates
Record = dict[str, Any]


def collect(study: Study) -> dict[str, Any]:
    """All that tables and pictures need, JSON-ready.

        {"arms": {ARM: {"alpha": α or null, "mode": …}}, "tasks": [TASK, …], "fixed": […], "references": […], "unit": "base" or "run",
         "update": N, "planned": runs in all,
         "before": [{"task", "base", ACCURACIES}, …],
         "runs": [{"task", "base", "arm", "seed", ACCURACIES, "rollout_tokens", "seconds", "exposure_share", "alpha": [an update],
                   "first_kl", "signals": {name: value}, "settings": checksum, "git": commit}, …],
         "checks": [{"task", "base", "lead", "updates", "changes": [{"alpha", a signal's change …, "accuracy": gain}, …], …}, …]}
        ACCURACIES = "problems", "sampled", "greedy", "by_difficulty": {label: sampled}

    Accuracies are shares. rollout_tokens are those of the updates' responses. first_kl: mean KL of the first update's response tokens,
    in nats: the student is then still the base, and all arms have the same responses. Null where that was not
    finite, and the update skipped. An arm's alpha: null where it is not one and fixed.
    """
    return {
        "arms": {name: _arm(arm.config.exposure) for name, arm in study.arms.items()},
        "tasks": list(study.tasks),
        "bases": study.bases.names,
        "seeds": study.seeds,
        "fixed": study.fixed,
        "references": study.references,
        "unit": study.unit,
        "update": study.evaluation.update,
        "samples": study.evaluation.samples,
        "planned": sum(1 for _ in study.runs()),
        "before": [_before(study, task, base) for task, base in study.pairs() if is_evaluated(study.before_folder(task, base))],
        "runs": [_record(study, run) for run in study.runs() if is_evaluated(study.run_folder(run))],
        "checks": [_check(study, check) for check in study.checks() if (study.check_folder(check) / CHECKED).is_file()],
    }


def _arm(exposure: Any) -> Record:
    return {"mode": exposure.mode, "alpha": exposure.fixed if exposure.mode == "fixed" and exposure.bins == 1 else None}


def _before(study: Study, task: str, base: str) -> Record:
    return {"task": task, "base": base, **_accuracies(study.before_folder(task, base))}


def _check(study: Study, check: Check) -> Record:
    folder = study.check_folder(check)
    found = _json(folder / CHECKED)
    return {
        "task": check.task,
        "base": check.base,
        "lead": check.lead,
        "updates": found["updates"],
        "changes": [{name: value for name, value in row.items() if value is not None} for row in found["changes"]],
        "settings": checksum(_json(folder / DECISIVE)),
        "git": _revision(folder / SETTINGS),
    }


def _record(study: Study, run: Run) -> Record:
    folder = study.run_folder(run)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = lines[: study.evaluation.update]
    summary = _json(folder / "summary.json")
    return {
        "task": run.task,
        "base": run.base,
        "arm": run.arm,
        "seed": run.seed,
        **_accuracies(folder / "evaluation"),
        "rollout_tokens": round(sum(line["rollout/length"] for line in lines) * study.arms[run.arm].config.data.batch),
        "seconds": round(summary["seconds"], 2),
        "exposure_share": summary["exposure_share"],
        "alpha": [round(line["exposure/alpha"], 3) for line in lines],
        "first_kl": lines[0]["distill/kl"],
        "signals": {name: value for name in SIGNALS if (value := _late(lines, name)) is not None},
        "settings": checksum(_json(folder / DECISIVE)),
        "git": _revision(folder / SETTINGS),
    }


def _revision(settings: Path) -> str | None:
    """Commit of the checkout that a run began in."""
    with yaml_document(settings) as document:
        return next((document.value(entry).get("git") for entry in document.entries() if entry.key == "versions"), None)


def _accuracies(folder: Path) -> Record:
    evaluation = _json(folder / "evaluation.json")
    return {
        "problems": evaluation["problems"],
        "sampled": evaluation["average_at_k"],
        "greedy": evaluation["greedy"],
        "by_difficulty": {label: part["average_at_k"] for label, part in evaluation["by_difficulty"].items()},
    }


def _late(lines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Mean of a metric over the last tenth of the updates, of those that measured it; None where it was not measured there."""
    last = lines[-max(1, len(lines) // _LATE) :]
    values = [line[name] for line in last if line.get(name) is not None]
    return float(np.mean(values)) if values else None


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
