"""Numbers and texts about an update that are not part of the method: rollout statistics, memory, samples, the run's summary."""

import json
import platform
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_atesd.config import DistillConfig, TrainConfig
from megatron_atesd.data.prompts import PromptRenderer
from megatron_atesd.distill.step import BinResult, StepResult
from megatron_atesd.exposure.bins import bin_metric
from megatron_atesd.parallel.groups import gathered
from megatron_atesd.records import Exposure, Rollout, TeacherContext
from megatron_atesd.report.phases import Phases, phases_of
from megatron_atesd.report.samples import Sample
from megatron_atesd.rollout.loops import is_loop
from megatron_atesd.rollout.wording import exploration_words, speaks_of_a_given_solution

_SHOWN = 400  # characters of a response on the console, at either end


def rollout_metrics(
    rollouts: Sequence[Rollout],
    contexts: Sequence[TeacherContext],
    answered: Callable[[Rollout], bool],
    decode: Callable[[Sequence[int]], str],
) -> dict[str, float]:
    """Means over all ranks' rollouts: tokens (the stop token is one), share cut at the limit, share cut amid a loop, share that stopped
    at once, share that `answered` holds for, share that speaks of a solution it was given; of their problems' reference segments those
    that the teacher sees, and all; and exploration words in 1,000 tokens. decode: text of ids. Collective."""
    rows = []
    for r, c in zip(rollouts, contexts, strict=True):
        shape = (len(r.response_ids), r.truncated, ends_in_loop(r), is_empty(r), answered(r))
        rows.append((*shape, *worded(r, decode), c.revealed, c.segments, 1))
    sums = torch.tensor(rows, dtype=torch.float64, device=torch.cuda.current_device()).sum(dim=0)
    dist.all_reduce(sums, group=parallel_state.get_data_parallel_group())
    *totals, count = sums.tolist()
    rollout = ("rollout/length", "rollout/truncated", "rollout/loops", "rollout/empty", "rollout/accuracy", "rollout/leakage")
    names = (*rollout, "rollout/exploration", "exposure/revealed", "exposure/segments")
    means = {name: total / count for name, total in zip(names, totals, strict=True)}
    return means | {"rollout/exploration": 1000 * means["rollout/exploration"] / means["rollout/length"]}


def length_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Tokens that a tenth, a half and nine tenths of all ranks' responses do not exceed. Collective."""
    lengths = gathered([len(r.response_ids) for r in rollouts], parallel_state.get_data_parallel_group())
    shares = (10, 50, 90)
    found = np.percentile([length for part in lengths for length in part], shares, method="inverted_cdf")
    return {f"rollout/length_p{share}": float(value) for share, value in zip(shares, found, strict=True)}


def bin_metrics(
    rollouts: Sequence[Rollout],
    contexts: Sequence[TeacherContext],
    answered: Callable[[Rollout], bool],
    bins: Sequence[int],
    by_bin: Sequence[BinResult],
    exposure: Exposure,
) -> dict[str, float]:
    """What is told of each difficulty bin, and exposure/alpha as the mean over all rollouts. bins: of each rollout's problem. Collective.

    by_bin: of the update's loss, one for each bin. A bin without a rollout in this update has its exposure alone.
    """
    sums = torch.zeros(len(by_bin), 4, dtype=torch.float64, device=torch.cuda.current_device())
    for number, r, c in zip(bins, rollouts, contexts, strict=True):
        sums[number] += sums.new_tensor([1, answered(r), c.revealed, c.segments])
    dist.all_reduce(sums, group=parallel_state.get_data_parallel_group())
    metrics = {"exposure/alpha": sum(exposure.of(i) * row[0] for i, row in enumerate(sums.tolist())) / sums[:, 0].sum().item()}
    for i, ((count, *totals), part) in enumerate(zip(sums.tolist(), by_bin, strict=True)):
        metrics[bin_metric(i, "exposure/alpha")] = exposure.of(i)
        if count:
            names = ("rollout/accuracy", "exposure/revealed", "exposure/segments")
            metrics |= {bin_metric(i, name): total / count for name, total in zip(names, totals, strict=True)}
            metrics[bin_metric(i, "distill/kl")] = part.kl
    return metrics


def ends_in_loop(rollout: Rollout) -> bool:
    """Whether the response repeats itself up to the limit at which it was cut."""
    return rollout.truncated and is_loop(rollout.response_ids)


def worded(rollout: Rollout, decode: Callable[[Sequence[int]], str]) -> tuple[bool, int]:
    """Whether the response speaks of a solution that it was given, beyond what its prompt says; its exploration words."""
    response = decode(rollout.response_ids)
    return speaks_of_a_given_solution(response, lambda: decode(rollout.prompt_ids)), exploration_words(response)


def is_empty(rollout: Rollout) -> bool:
    """Whether the response is nothing but its stop token, which it then learns to give, or not to."""
    return len(rollout.response_ids) == 1 and not rollout.truncated


def peak_memory_gib() -> float:
    """Largest memory so far of this rank: the device's with CUDA, the process's without."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def machine() -> dict[str, str]:
    """What a run runs on, for its config.yaml: number of processes, and rank 0's device."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {platform.machine()}"
    return {"processes": str(dist.get_world_size()), "device": device}


def describe_sample(renderer: PromptRenderer, rollout: Rollout) -> str:
    """One rollout as text, for a person: of a long response its beginning and its end."""
    cut = " … (cut)" if rollout.truncated else ""
    problem, response = rollout.problem, renderer.decode(rollout.response_ids)
    if len(response) > 2 * _SHOWN:
        response = f"{response[:_SHOWN]}\n[… {len(response) - 2 * _SHOWN:,} characters …]\n{response[-_SHOWN:]}"
    return f"problem {problem.id}: {problem.problem}\nresponse: {response}{cut}\nanswer: {problem.answer}"


def sample_of(
    renderer: PromptRenderer, update: int, rollout: Rollout, context: TeacherContext, alpha: float, kl: Sequence[float], right: bool
) -> Sample:
    """One rollout with what the teacher saw of its problem, and the KL of each token (nats), for samples.jsonl."""
    problem, texts = rollout.problem, renderer.token_texts(rollout.response_ids)
    what = (update, problem.id, problem.problem, problem.answer, alpha, context.revealed, context.segments)
    return Sample(*what, tuple(texts), tuple(kl), rollout.truncated, right)


def step_metrics(result: StepResult) -> dict[str, float]:
    """What both passes of an update have measured, the KL by position in the response with it; units as in the legend."""
    return {
        "distill/loss": result.loss,
        "distill/kl": result.kl,
        "distill/top1_disagreement": result.disagreement,
        "distill/clipped_tokens": result.clipped_tokens,
        "distill/clipped_kl": result.clipped_kl,
        "distill/teacher_entropy": result.teacher_entropy,
        "student/entropy": result.student_entropy,
        "student/confidence": result.confidence,
        "perf/padding": result.padding,
        **{f"distill/kl_at/{place.first}": place.kl for place in result.by_place},
    }


def entry_clip_warning(distill: DistillConfig) -> str:
    """A warning of what clip_mode entry does to the gradient; '' where no entry is cut."""
    if distill.clip_mode != "entry" or distill.clip == 0:
        return ""
    return (
        f"distill.clip_mode entry: vocabulary entries above distill.clip {distill.clip:g} lose the teacher's pull and keep the push, so "
        "training can lower the token that the teacher prefers: set distill.clip_mode token, unless it is the papers' loss that you want"
    )


def exposure_cost(lines: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """From the lines of metrics.jsonl: seconds of all updates, of the choice of exposure and of the probe, and the share that both add.

    exposure_share: their seconds, divided by those of everything else; None where there is nothing else.
    """
    seconds, exposure, probe = (sum(line.get(f"time/{phase}") or 0.0 for line in lines) for phase in ("step", "exposure", "probe"))
    rest = seconds - exposure - probe
    share = (exposure + probe) / rest if rest > 0 else None
    return {"seconds": seconds, "exposure_seconds": exposure, "probe_seconds": probe, "exposure_share": share}


def write_summary(run_dir: Path, config: TrainConfig, more: Mapping[str, Any] | None = None) -> Phases:
    """summary.json of a finished run, from its metrics.jsonl: last values, decisions, where the time went. Returns the phases.

    more: parts that others know of.
    """
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    phases = phases_of(lines)
    summary = {
        "updates": len(lines),
        "mode": config.exposure.mode,
        "seed": config.run.seed,
        **exposure_cost(lines),
        "phases": phases.record(),
        "exposure_trace": [line["exposure/alpha"] for line in lines],
        "controller_updates": max((int(line.get("controller/updates") or 0) for line in lines), default=0),
        "last": lines[-1] if lines else {},
        **(more or {}),
    }
    (run_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return phases
