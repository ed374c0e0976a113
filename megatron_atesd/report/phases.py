"""Where the time of a run went, from its metrics.jsonl, also of one that was resumed: seconds and shares, and what to do about it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

REST = "saving and other"
# Phase → what makes it shorter. In the order of an update; `time/<phase>` is its metric.
REMEDIES = {
    "rollout": "engine.name vllm is faster on a GPU (docs/engines.md); so may be a larger engine.batch or smaller rollout.max_new_tokens",
    "check": "a smaller engine.checked compares fewer responses",
    "exposure": "a longer exposure.hold chooses less often, a smaller exposure.score_share (mode aligned) reads fewer responses",
    "teacher": "a larger parallel.micro_batch_tokens or distill.chunk fills the device, where memory is free (tools/plan.py)",
    "student": "a larger parallel.micro_batch_tokens or distill.chunk fills the device, where memory is free (tools/plan.py)",
    "probe": "a larger exposure.probe_every measures less often, a smaller data.probe_size fewer problems",
    "eval": "a larger eval.every evaluates less often, a smaller eval.samples takes fewer responses",
    REST: "a larger checkpoint.every or eval.every saves less often, checkpoint.background saves while training goes on, and a larger "
    "monitor.figure_every draws fewer pictures",
}


@dataclass(frozen=True)
class Phases:
    """seconds: of each phase that took any. updates: that were counted. The rest as in summary.json; None where nothing was measured."""

    updates: int
    seconds: Mapping[str, float]
    median_update_seconds: float | None
    response_tokens: int
    peak_memory_gib: float | None

    @property
    def total(self) -> float:
        """Seconds of all updates, and between them; what was before the first one and a save after the last one are not known."""
        return sum(self.seconds.values())

    def share(self, phase: str) -> float:
        """Of a phase, in all seconds."""
        return self.seconds[phase] / self.total

    def record(self) -> dict[str, Any]:
        """For summary.json."""
        return asdict(self) | {"shares": {phase: self.share(phase) for phase in self.seconds}}


def phases_of(lines: Sequence[Mapping[str, Any]]) -> Phases:
    """From the lines of metrics.jsonl. What no phase accounts for is `REST`."""
    found = {phase: _sum(lines, f"time/{phase}") for phase in REMEDIES}
    steps = [line["time/step"] for line in lines if line.get("time/step") is not None]
    within = max(0.0, sum(steps) - sum(seconds for phase, seconds in found.items() if phase != "eval"))
    evaluated = [0.0, *(line.get("time/eval") or 0.0 for line in lines)]  # after an update, so between it and the next
    found[REST] = within + sum(max(0.0, (line.get("time/between") or 0.0) - before) for line, before in zip(lines, evaluated, strict=False))
    tokens = sum((line.get("perf/tokens_per_second") or 0.0) * (line.get("time/step") or 0.0) for line in lines)
    peaks = [line["memory/peak_gib"] for line in lines if line.get("memory/peak_gib") is not None]
    seconds = {phase: value for phase, value in found.items() if value > 0}
    return Phases(len(lines), seconds, median(steps) if steps else None, round(tokens), max(peaks, default=None))


def _sum(lines: Sequence[Mapping[str, Any]], name: str) -> float:
    return math.fsum(line.get(name) or 0.0 for line in lines)


def account(phases: Phases) -> str:
    """Lines for a person: a table, the figures of the whole, and what took longest; '' where no time was measured."""
    if not phases.total:
        return ""
    width = max(map(len, phases.seconds))
    rows = [f"  {phase:<{width}}  {value:>10,.1f} s  {100 * phases.share(phase):>5.1f} %" for phase, value in phases.seconds.items()]
    whole = [f"  median update {phases.median_update_seconds:.2f} s"] if phases.median_update_seconds is not None else []
    whole += [f"{phases.response_tokens:,} response tokens"]
    whole += [f"peak memory {phases.peak_memory_gib:.2f} GiB"] if phases.peak_memory_gib is not None else []
    head = f"phases of {phases.updates} updates, {phases.total:,.1f} s:"
    return "\n".join([head, *rows, ", ".join(whole), _longest(phases)])


def _longest(phases: Phases) -> str:
    phase = max(phases.seconds, key=lambda name: phases.seconds[name])
    return f"  {phase} took {100 * phases.share(phase):.0f} % of the time: {REMEDIES[phase]}"
