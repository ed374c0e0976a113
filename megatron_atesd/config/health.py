"""Section health: when a run says that something goes wrong, and when it ends for it."""

from dataclasses import dataclass, field, fields


@dataclass(frozen=True)
class HealthConfig:
    """Alarms about the run, see docs/health.md. A threshold of null turns its alarm off.

    Args:
        window: Updates over which an alarm looks at a metric. "At first" below means the first so many updates. [ours]
        stop_on: Names of alarms, as they stand below, that end the run: a checkpoint is saved, and the exit code is 2. [ours]
        kl_collapse: Alarm when the KL to the target is below it although a reference is shown, nats per token. [ours]
        kl_explosion: Alarm when the KL is above so many times what it was in the first update with an exposure as high. [ours]
        entropy_collapse: Alarm when the student's entropy is below this share of what it was at first. [ours]
        length_drift: Alarm when responses are so many times as long as at first, or as short. [ours]
        truncation: Alarm when the share of responses cut at rollout.max_new_tokens is above it. [ours]
        loops: Alarm when the share of responses cut amid a loop is above it. [ours]
        leakage: Alarm when the share of responses that speak of a solution or an answer they were given is above it. [ours]
        exploration_loss: Alarm when exploration words per token (wait, however, let me check) are below this share of what they were at
            first. A model that had next to none at first sets off no alarm. [ours]
        controller_saturated: Alarm when the α that mode learned plays stay within such a range for three windows, and eight decisions at
            least; of mode target_kl, when they stay so near clip_low or clip_high. [ours]
        controller_idle: Alarm when modes learned, aligned and posterior have learned nothing for so many updates more than they need.
            [ours]
        logprob_gap: Alarm when the mean gap of a token's log-probability between engine and training model is above it in one update, or
            no number, nats. [ours]
    """

    window: int = 10
    stop_on: list[str] = field(default_factory=list[str])
    kl_collapse: float | None = 1e-4
    kl_explosion: float | None = 4.0
    entropy_collapse: float | None = 0.2
    length_drift: float | None = 2.0
    truncation: float | None = 0.5
    loops: float | None = 0.1
    leakage: float | None = 0.02
    exploration_loss: float | None = 0.3
    controller_saturated: float | None = 0.02
    controller_idle: int | None = 20
    logprob_gap: float | None = 0.05


ALARMS = tuple(setting.name for setting in fields(HealthConfig) if setting.name not in ("window", "stop_on"))
