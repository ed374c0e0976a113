"""Each alarm of section health: when its condition holds, what it then says, and what to do. docs/health.md explains them.

finding = ALARM["loops"].look(history, config, threshold)     # None while all is well
"""

from collections.abc import Callable
from dataclasses import dataclass

from megatron_atesd.config import TrainConfig
from megatron_atesd.report.controller_alarms import Finding, controller_idle, controller_saturated
from megatron_atesd.report.history import KL, History, known, level, share

LEAST_KL = 0.01  # nats per token; how often a smaller one has doubled says nothing
LEAST_WORDS = 50  # exploration words in the first window; fewer come and go by chance


def kl_collapse(history: History, config: TrainConfig, threshold: float) -> Finding | None:
    """Not where the settings show the teacher nothing that the student has not."""
    exposed = config.exposure.mode != "none" and config.exposure.reference != "none"
    now = level(history.last(KL))
    if not (exposed and now < threshold):
        return None
    return Finding(
        now, f"the KL to the target is {now:.2g} nats per token: the teacher says what the student says, nothing is left to learn"
    )


def kl_explosion(history: History, config: TrainConfig, threshold: float) -> Finding | None:
    """Against the first update with an exposure as high: a KL that rises with the exposure is no explosion.

    Not against a window: a learning rate far too high ruins a model in its first update.
    """
    now, first = level(history.last(KL)), history.kl_first
    if not now > threshold * max(first, LEAST_KL):  # a NaN comes first in max, and is above nothing
        return None
    times = now / max(first, LEAST_KL)
    return Finding(times, f"the KL to the target is {now:.3g} nats per token, {times:.3g} times what it was at first")


def entropy_collapse(history: History, config: TrainConfig, threshold: float) -> Finding | None:
    """Of the student, at the distillation temperature."""
    now, first = level(history.last("student/entropy")), level(history.first("student/entropy"))
    if not now < threshold * first:
        return None
    return Finding(now / first, f"the student's entropy is {now:.2g} nats per token, {100 * now / first:.2g} % of the {first:.2g} at first")


def length_drift(history: History, config: TrainConfig, threshold: float) -> Finding | None:
    """Either way."""
    now, first = level(history.last("rollout/length")), level(history.first("rollout/length"))
    if not (now > threshold * first or first > threshold * now):
        return None
    return Finding(now / first, f"responses have {now:.4g} tokens, {now / first:.2g} times the {first:.4g} at first")


def truncation(history: History, config: TrainConfig, threshold: float) -> Finding | None:
    """Of responses."""
    now = share(history.last("rollout/truncated"))
    if not now > threshold:
        return None
    return Finding(now, f"{100 * now:.3g} % of the responses are cut at rollout.max_new_tokens {config.rollout.max_new_tokens}")


def loops(history: History, config: TrainConfig, threshold: float) -> Finding | None:
    """Of responses."""
    now = share(history.last("rollout/loops"))
    if not now > threshold:
        return None
    return Finding(now, f"{100 * now:.3g} % of the responses repeat themselves until they are cut")


def leakage(history: History, config: TrainConfig, threshold: float) -> Finding | None:
    """Of responses."""
    now = share(history.last("rollout/leakage"))
    if not now > threshold:
        return None
    return Finding(
        now, f"{100 * now:.2g} % of the responses speak of a solution or an answer that they were given, but the student is given none"
    )


def exploration_loss(history: History, config: TrainConfig, threshold: float) -> Finding | None:
    """Only where the first window had words enough to count on."""
    first, now = history.first("rollout/exploration"), level(history.last("rollout/exploration"))
    words = sum(rate * length for rate, length in zip(first, history.first("rollout/length"), strict=False)) / 1000 * config.data.batch
    if words < LEAST_WORDS or not now < threshold * level(first):
        return None
    rest = now / level(first)
    return Finding(
        rest, f"responses have {now:.2g} exploration words in 1,000 tokens, {100 * rest:.2g} % of the {level(first):.2g} at first"
    )


def logprob_gap(history: History, config: TrainConfig, threshold: float) -> Finding | None:
    """Of the last update alone: what is more than rounding is a wrong model, not noise."""
    if "rollout/logprob_gap" not in history.now:
        return None
    gap = known(history.now["rollout/logprob_gap"])
    if not gap > threshold:
        return None
    wrong = "it samples from another model than the one that learns"
    return Finding(gap, f"the engine's log-probabilities are {gap:.3g} nats per token from the training model's: {wrong}")


@dataclass(frozen=True)
class AlarmKind:
    """look: the finding while the condition holds, given its threshold. remedy: sentences about what to do."""

    look: Callable[[History, TrainConfig, float], Finding | None]
    remedy: str


BACK = "go back to a checkpoint from before it (checkpoint.resume step_N)"
ALARM = {
    "kl_collapse": AlarmKind(
        kl_collapse,
        "If the student is as good as wanted, end the run. Else see that the reference reaches the teacher (exposure/alpha, "
        "exposure/revealed, section prompt), raise the exposure, take harder problems, or another distill.teacher than live.",
    ),
    "kl_explosion": AlarmKind(
        kl_explosion, f"Lower optimizer.lr or optimizer.clip_grad and {BACK} under a new run.dir; look at responses with monitor.samples."
    ),
    "entropy_collapse": AlarmKind(
        entropy_collapse,
        "Compare distill/teacher_entropy. If the teacher is as sure, the student only follows: lower the exposure if its samples should "
        "differ more. If not, lower optimizer.lr, or take distill.divergence forward_kl.",
    ),
    "length_drift": AlarmKind(
        length_drift,
        "Read responses with monitor.samples. Shorter ones that skip steps: lower the exposure. Longer ones: see rollout/loops and "
        "rollout/truncated. If it is wanted, raise health.length_drift.",
    ),
    "truncation": AlarmKind(
        truncation,
        "Raise rollout.max_new_tokens, or set prompt.student_thinking to false. If rollout/loops is as high, see the alarm loops. "
        "If it is wanted, set health.truncation to null.",
    ),
    "loops": AlarmKind(loops, f"Take distill.clip_mode token, not entry, lower optimizer.lr, and {BACK}."),
    "leakage": AlarmKind(
        leakage,
        "The student imitates a teacher who speaks of what it sees: have prompt.transition ask it not to mention the solution, lower "
        "the exposure, and read responses with monitor.samples.",
    ),
    "exploration_loss": AlarmKind(
        exploration_loss,
        "A teacher who knows the solution need not check, and teaches not to: see whether held-out accuracy still rises, lower the "
        "exposure or take exposure.mode aligned, or distill.target mix_unaided.",
    ),
    "controller_saturated": AlarmKind(
        controller_saturated,
        "Mode learned tries nothing else any more, right or wrong: set exposure.entropy_floor or raise exposure.entropy_target_end, lower "
        "exposure.lr, or take mode aligned. Mode target_kl cannot reach its target: change exposure.target_kl.",
    ),
    "controller_idle": AlarmKind(
        controller_idle,
        "See optim/skipped. Mode aligned with exposure.progress train_accuracy needs right and wrong responses in a batch: take easier "
        "problems, a larger data.batch, or progress probe_margin. Modes learned and posterior need a measured progress.",
    ),
    "logprob_gap": AlarmKind(
        logprob_gap,
        "Compare a run with engine.name training. With vLLM see docs/engines.md for what is known to differ; FP8 rollouts "
        "(precision.rollout) differ more: if theirs is wanted, raise health.logprob_gap.",
    ),
}
