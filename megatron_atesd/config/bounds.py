"""The range of every setting that is a number."""

from argparse import ArgumentTypeError
from collections.abc import Callable

Bound = tuple[str, Callable[[float], bool]]

POSITIVE: Bound = ("greater than 0", lambda v: v > 0)
ONE_OR_MORE: Bound = ("1 or more", lambda v: v >= 1)
TWO_OR_MORE: Bound = ("2 or more", lambda v: v >= 2)
ZERO_OR_MORE: Bound = ("0 or more", lambda v: v >= 0)
SHARE: Bound = ("from 0 to 1", lambda v: 0 <= v <= 1)
INNER_SHARE: Bound = ("between 0 and 1, both excluded", lambda v: 0 < v < 1)
UP_TO_ONE: Bound = ("greater than 0 and at most 1", lambda v: 0 < v <= 1)
LESS_THAN_ONE: Bound = ("below 1", lambda v: v < 1)
ABOVE_ONE: Bound = ("greater than 1", lambda v: v > 1)
BELOW_ONE: Bound = ("0 or more and below 1", lambda v: 0 <= v < 1)
NEGATIVE: Bound = ("below 0 (the entropy of a Beta distribution is at most 0), such as -0.1", lambda v: v < 0)
# A tenth of it draws nothing else than the most likely token either, and far below, divided logits overflow fp32.
LEAST_TEMPERATURE = 1e-3
TEMPERATURE: Bound = (f"{LEAST_TEMPERATURE} or more", lambda v: v >= LEAST_TEMPERATURE)
SAMPLING_TEMPERATURE: Bound = (f"0 (the most likely token) or {TEMPERATURE[0]}", lambda v: v == 0 or v >= LEAST_TEMPERATURE)
SEED: Bound = ("0 or more and below 2^63", lambda v: 0 <= v < 2**63)


def seed_argument(text: str) -> int:
    """A command's --seed, for argparse. Raises ArgumentTypeError when it is none."""
    rule, holds = SEED
    if not (text.removeprefix("-").isdecimal() and holds(int(text))):
        raise ArgumentTypeError(f"{text} must be a whole number, {rule}")
    return int(text)


BOUNDS: dict[str, Bound] = {
    "run.seed": SEED,
    "run.updates": ONE_OR_MORE,
    "run.max_skipped": ONE_OR_MORE,
    "lora.rank": ZERO_OR_MORE,
    "lora.alpha": POSITIVE,
    "lora.dropout": BELOW_ONE,
    "parallel.tensor": ONE_OR_MORE,
    "parallel.pipeline": ONE_OR_MORE,
    "parallel.virtual_pipeline": ONE_OR_MORE,
    "parallel.context": ONE_OR_MORE,
    "parallel.micro_batch_tokens": ONE_OR_MORE,
    "parallel.timeout_minutes": POSITIVE,
    "parallel.start_timeout_minutes": POSITIVE,
    "data.probe_size": ZERO_OR_MORE,
    "data.batch": ONE_OR_MORE,
    "prompt.max_length": ONE_OR_MORE,
    "rollout.max_new_tokens": ONE_OR_MORE,
    "rollout.min_new_tokens": ZERO_OR_MORE,
    "rollout.temperature": SAMPLING_TEMPERATURE,
    "rollout.top_p": UP_TO_ONE,
    "rollout.top_k": ZERO_OR_MORE,
    "rollout.min_p": BELOW_ONE,
    "engine.batch": ZERO_OR_MORE,
    "engine.cache_gib": ZERO_OR_MORE,
    "engine.checked": ZERO_OR_MORE,
    "distill.jsd_beta": INNER_SHARE,
    "distill.clip": ZERO_OR_MORE,
    "distill.temperature": TEMPERATURE,
    "distill.ema_decay": BELOW_ONE,
    "distill.refresh_every": ONE_OR_MORE,
    "distill.mix_weight": LESS_THAN_ONE,
    "distill.mix_exposure": SHARE,
    "distill.chunk": ONE_OR_MORE,
    "distill.top_k": ZERO_OR_MORE,
    "exposure.fixed": SHARE,
    "exposure.start": SHARE,
    "exposure.end": SHARE,
    "exposure.bins": ONE_OR_MORE,
    "exposure.difficulty_samples": ONE_OR_MORE,
    "exposure.target_kl": POSITIVE,
    "exposure.target_rate": POSITIVE,
    "exposure.hold": ONE_OR_MORE,
    "exposure.lookahead": ONE_OR_MORE,
    "exposure.discount": UP_TO_ONE,
    "exposure.grounding_weight": ZERO_OR_MORE,
    "exposure.batch": ONE_OR_MORE,
    "exposure.replay": ZERO_OR_MORE,
    "exposure.hidden": ONE_OR_MORE,
    "exposure.lr": POSITIVE,
    "exposure.entropy_target_start": NEGATIVE,
    "exposure.entropy_target_end": NEGATIVE,
    "exposure.entropy_coef": ZERO_OR_MORE,
    "exposure.entropy_floor": NEGATIVE,
    "exposure.clip_low": SHARE,
    "exposure.clip_high": SHARE,
    "exposure.ema_decay": BELOW_ONE,
    "exposure.warmup_exposure": SHARE,
    "exposure.warmup_updates": ZERO_OR_MORE,
    "exposure.probe_exposure": SHARE,
    "exposure.bias_check": ZERO_OR_MORE,
    "exposure.probe_every": ONE_OR_MORE,
    "exposure.probe_samples": ONE_OR_MORE,
    "exposure.wrong_weight": SHARE,
    "exposure.grid": TWO_OR_MORE,
    "exposure.score_step": POSITIVE,
    "exposure.score_share": UP_TO_ONE,
    "exposure.score_decay": BELOW_ONE,
    "schedule.warmup_updates": ZERO_OR_MORE,
    "schedule.decay_updates": ZERO_OR_MORE,
    "schedule.min_lr": ZERO_OR_MORE,
    "checkpoint.every": ZERO_OR_MORE,
    "checkpoint.keep": ZERO_OR_MORE,
    "checkpoint.keep_every": ZERO_OR_MORE,
    "monitor.figure_every": ZERO_OR_MORE,
    "monitor.samples": ZERO_OR_MORE,
    "eval.every": ZERO_OR_MORE,
    "eval.samples": ONE_OR_MORE,
    "eval.seed": SEED,
    "eval.temperature": SAMPLING_TEMPERATURE,
    "eval.top_k": ZERO_OR_MORE,
    "eval.top_p": UP_TO_ONE,
    "eval.max_new_tokens": ONE_OR_MORE,
    "health.window": ONE_OR_MORE,
    "health.kl_collapse": POSITIVE,
    "health.kl_explosion": ABOVE_ONE,
    "health.entropy_collapse": INNER_SHARE,
    "health.length_drift": ABOVE_ONE,
    "health.truncation": BELOW_ONE,
    "health.loops": BELOW_ONE,
    "health.leakage": BELOW_ONE,
    "health.exploration_loss": INNER_SHARE,
    "health.controller_saturated": INNER_SHARE,
    "health.controller_idle": ONE_OR_MORE,
    "health.logprob_gap": POSITIVE,
}
