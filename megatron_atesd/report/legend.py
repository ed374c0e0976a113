"""What every metric of a run means: the one table that docs/metrics.md, TensorBoard's layout and the report are made from.

A name is that of metrics.jsonl. `<α>` and `<number>` stand for a value in it. With exposure.bins above 1 a metric of one difficulty bin is
the same name behind `bin<number>/`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeVar

Value = TypeVar("Value")
SCORE = "controller/score/"  # and an α: what a controller thinks of it, higher is better
Group = Literal["learning", "exposure", "rollout", "evaluation", "health", "speed", "memory", "checkpoint"]
BIN = re.compile(r"bin\d+/")
_VALUES = {"<α>": r"[-+.e0-9]+", "<number>": r"\d+", "<file>": r"[^/]+", "<alarm>": r"[a-z_]+", "<place>": r"\d+"}


@dataclass(frozen=True)
class Metric:
    """name: as in metrics.jsonl, `<…>` for a value in it. unit: "" where there is none. meaning: one or more plain sentences."""

    name: str
    group: Group
    unit: str
    meaning: str


LEGEND = (
    Metric(
        "distill/loss", "learning", "nats per token", "The loss of the update, clipped. With distill.clip_mode entry it may be negative."
    ),
    Metric(
        "distill/kl",
        "learning",
        "nats per token",
        "The unclipped KL from the student to the target: the teacher, unless distill.target mixes.",
    ),
    Metric(
        "distill/kl_at/<place>",
        "learning",
        "nats per token",
        "KL of the response tokens from number <place>, counted from 1, to before its double.",
    ),
    Metric("distill/top1_disagreement", "learning", "share", "Response tokens where target and student prefer different tokens."),
    Metric(
        "distill/clipped_tokens",
        "learning",
        "share",
        "Response tokens that the clip touches. entry: it cuts an entry. token: the divergence is above it.",
    ),
    Metric("distill/clipped_kl", "learning", "share", "Part of the whole KL that the tokens in distill/clipped_tokens have."),
    Metric("distill/teacher_entropy", "learning", "nats per token", "Entropy of the target at the distillation temperature."),
    Metric("distill/teacher_refreshed", "learning", "0 or 1", "1 where a refreshed teacher became a copy of the student after the update."),
    Metric("student/entropy", "learning", "nats per token", "Entropy of the student at the distillation temperature."),
    Metric("student/confidence", "learning", "probability", "Mean of the student's largest probability over response tokens."),
    Metric("optim/lr", "learning", "", "Learning rate of the update."),
    Metric("optim/grad_norm", "learning", "", "Norm of the gradient before clipping."),
    Metric("optim/skipped", "learning", "0 or 1", "1 where the loss or a gradient was not finite. Nothing moved in such an update."),
    Metric(
        "probe/nll", "learning", "nats per token", "NLL of the probe problems' reference solutions under the student, at temperature 1."
    ),
    Metric(
        "probe/progress", "learning", "as the signal", "The progress signal (exposure.progress). Lower is better: an accuracy is negated."
    ),
    Metric("probe/own_nll", "learning", "nats per token", "NLL of the start model's own correct responses to the probe problems."),
    Metric("probe/wrong_nll", "learning", "nats per token", "NLL of the start model's own wrong responses to the probe problems."),
    Metric("probe/accuracy", "learning", "share", "Fresh responses to the probe problems that are right, graded by meaning."),
    Metric("exposure/alpha", "exposure", "α", "The reveal ratio in force. With several bins the mean over the update's responses."),
    Metric("exposure/a", "exposure", "", "First parameter of the Beta policy that α was drawn from."),
    Metric("exposure/b", "exposure", "", "Second parameter of the Beta policy that α was drawn from."),
    Metric("exposure/mean", "exposure", "α", "Mean of the Beta policy."),
    Metric("exposure/entropy", "exposure", "nats", "Entropy of the Beta policy. At most 0."),
    Metric("exposure/revealed", "exposure", "segments", "Reference segments that the teacher sees, mean over the update's problems."),
    Metric("exposure/segments", "exposure", "segments", "Reference segments that there are, mean over the update's problems."),
    Metric(
        "controller/score/<α>",
        "exposure",
        "nats per token",
        "What the controller thinks of this α. Higher is better. aligned: by how much the loss at this α falls on a small step along the "
        "progress gradient. posterior: what this α is believed to add to progress, in the signal's units "
        "(before two measurements in σ of their noise).",
    ),
    Metric("controller/posterior_best", "exposure", "α", "Exposure that mode posterior believes to be best."),
    Metric("controller/posterior_sd", "exposure", "as the signal", "Mean standard deviation of what mode posterior believes."),
    Metric("controller/alpha", "exposure", "α", "Exposure of the decision whose look-ahead has ended, to which controller/reward belongs."),
    Metric("controller/reward", "exposure", "nats per token", "Reward of the decision whose look-ahead has ended."),
    Metric("controller/learning_progress", "exposure", "nats per token", "The part of the reward that learning progress has."),
    Metric("controller/grounding", "exposure", "nats per token", "Log-probability of the grounding text under the exposed teacher."),
    Metric("controller/advantage", "exposure", "", "Advantage that the decision was learned from."),
    Metric("controller/updates", "exposure", "count", "Policy updates so far."),
    Metric("rollout/length", "rollout", "tokens", "Mean length of a response. The stop token counts."),
    Metric("rollout/length_p10", "rollout", "tokens", "A tenth of the responses are at most this long."),
    Metric("rollout/length_p50", "rollout", "tokens", "Median length of a response."),
    Metric("rollout/length_p90", "rollout", "tokens", "Nine tenths of the responses are at most this long."),
    Metric("rollout/truncated", "rollout", "share", "Responses cut at rollout.max_new_tokens."),
    Metric(
        "rollout/loops",
        "rollout",
        "share",
        "Responses cut amid a loop: a tail of 16 tokens or more that is three times the same, or oftener.",
    ),
    Metric("rollout/empty", "rollout", "share", "Responses that are nothing but their stop token."),
    Metric(
        "rollout/leakage",
        "rollout",
        "share",
        "Responses that speak of a solution or an answer that they were given, in words that the prompt has not. English and Chinese.",
    ),
    Metric(
        "rollout/exploration",
        "rollout",
        "words per 1,000 tokens",
        "Words of checking, doubting and trying otherwise (wait, however, let me check, …). English and Chinese.",
    ),
    Metric("rollout/accuracy", "rollout", "share", "Responses whose boxed answer equals the reference's letter by letter."),
    Metric(
        "rollout/logprob_gap",
        "rollout",
        "nats",
        "Mean difference of a token's log-probability between engine and training model, over engine.checked responses of a data rank.",
    ),
    Metric("rollout/logprob_gap_max", "rollout", "nats", "The largest such difference."),
    Metric("rollout/response_ratio", "rollout", "factor", "Largest factor between the probabilities that both give to a whole response."),
    Metric(
        "eval/<file>/average_at_k", "evaluation", "share", "Average@K: right responses, of K = eval.samples to each problem of the file."
    ),
    Metric("eval/<file>/ci_low", "evaluation", "share", "Lower end of its 95 % interval over problems like these."),
    Metric("eval/<file>/ci_high", "evaluation", "share", "Upper end of its 95 % interval over problems like these."),
    Metric("eval/<file>/pass_at_k", "evaluation", "share", "Problems that at least one of the K responses solves."),
    Metric("eval/<file>/answered", "evaluation", "share", "Responses that box an answer, right or wrong."),
    Metric("eval/<file>/truncated", "evaluation", "share", "Responses cut at eval.max_new_tokens."),
    Metric("eval/<file>/loops", "evaluation", "share", "Responses cut amid a loop, as rollout/loops."),
    Metric("eval/<file>/length", "evaluation", "tokens", "Mean length of a response. The stop token counts."),
    Metric("health/<alarm>", "health", "0 or 1", "1 while the condition of this alarm holds, see docs/health.md."),
    Metric("time/rollout", "speed", "seconds", "Generating the update's responses."),
    Metric("time/check", "speed", "seconds", "Comparing the engine's log-probabilities with the training model's."),
    Metric("time/exposure", "speed", "seconds", "Choosing the exposure."),
    Metric("time/teacher", "speed", "seconds", "The teacher's pass."),
    Metric("time/student", "speed", "seconds", "The student's pass with gradients."),
    Metric("time/probe", "speed", "seconds", "The probe after the update."),
    Metric("time/step", "speed", "seconds", "The whole update."),
    Metric(
        "time/between",
        "speed",
        "seconds",
        "Between the update before and this one: saving, evaluating and the like.",
    ),
    Metric("time/eval", "speed", "seconds", "The evaluation after the update, which time/step does not contain."),
    Metric("perf/tokens_per_second", "speed", "tokens per second", "Response tokens of all ranks, divided by time/step."),
    Metric("perf/padding", "speed", "share", "Computed tokens that only pad."),
    Metric("memory/peak_gib", "memory", "GiB", "Peak memory of rank 0 so far: the device's with CUDA, the process's without."),
    Metric("checkpoint/failed", "checkpoint", "count", "Saves that have failed so far."),
)


def describe(name: str) -> Metric | None:
    """The entry of a metric of metrics.jsonl, also of one of a difficulty bin; None for a name that nobody has described."""
    plain = BIN.sub("", name, count=1) if BIN.match(name) else name
    return next((metric for metric in LEGEND if _compiled(metric.name).fullmatch(plain)), None)


def pattern(name: str) -> str:
    """A regular expression that matches the names that a name of the legend stands for."""
    parts = re.split(f"({'|'.join(map(re.escape, _VALUES))})", name)
    return "".join(_VALUES.get(part, re.escape(part)) for part in parts)


@cache
def _compiled(name: str) -> re.Pattern[str]:
    return re.compile(pattern(name))


def scores_of(metrics: Mapping[str, Value]) -> dict[float, Value]:
    """The metrics that are a controller's scores, by α; {} of modes that have none."""
    return {float(name.removeprefix(SCORE)): value for name, value in metrics.items() if name.startswith(SCORE)}
