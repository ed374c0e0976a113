"""The learned exposure controller: one Beta decision a hold window, REINFORCE on its delayed look-ahead reward.

`t` counts finished student updates. A decision taken at t0 holds for updates t0+1 … t0+H and is judged after update t0+L;
one whose look-ahead does not finish, or whose ℓ_t0 was not observed, is dropped. No process group here: see service.py.
"""

import hashlib
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import torch

from megatron_atesd.config import ExposureConfig
from megatron_atesd.errors import CheckpointError
from megatron_atesd.exposure import policy, reward
from megatron_atesd.exposure.state import FEATURES, TrainingState
from megatron_atesd.exposure.windows import hold_window
from megatron_atesd.records import Exposure, UpdateStats

MEMORY = 200  # judged decisions kept at least, for the running standard deviations, the ema baseline and replay


@dataclass(frozen=True)
class Decision:
    """One sampled exposure and what the policy knew."""

    number: int
    update: int  # t0
    features: list[float]
    sample: float  # before clipping: the log-probability is of this value
    alpha: float  # in force
    a: float
    b: float
    entropy: float


def seeded_generator(seed: int) -> torch.Generator:
    """A generator for the CPU that depends on all bits of `seed` (0 or more); below 2^32 it is torch's own, which takes 32 of them."""
    digest = hashlib.blake2b(str(seed).encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(seed if seed < 2**32 else int.from_bytes(digest, "little"))


class Controller:
    """Proposes exposures and learns from what follows (ATESD, the controller). Uses its own RNG only."""

    def __init__(self, config: ExposureConfig, updates: int, seed: int) -> None:
        """updates: length of training, for the progress feature and the entropy target. seed: of weights and samples."""
        self.config = config
        self.updates = updates
        self.generator = seeded_generator(seed)
        self.parameters = policy.init_parameters(FEATURES, config.hidden, self.generator)
        self.adam = torch.optim.Adam(self.parameters.values(), lr=config.lr)
        self.policy_updates = 0
        self.training = TrainingState(decay=config.ema_decay)
        self.current: Decision | None = None
        self.pending: list[Decision] = []  # taken, look-ahead not finished
        self.judged: list[Decision] = []  # reward known, oldest first
        self.learning: list[float] = []  # G_lp and G_gt of each judged decision
        self.grounding: list[float] = []
        self.fresh = 0  # judged decisions that no policy update has seen
        self.signals: dict[int, tuple[float, float | None]] = {}  # t → (ℓ_t, g_t), the last L + 1

    def propose(self, step: int, scores: Sequence[float] | None = None) -> Exposure:
        """The exposure for update step + 1; a new decision at each window start, the same answer within a window.

        step: finished updates. Before warmup_updates: the warm-up exposure with decision_id −1.
        """
        window = hold_window(self.config, step)
        if window < 0:
            return Exposure(self.config.warmup_exposure, -1)
        if self.current is None or self.current.number != window:
            self.current = self._decide(step, window)
            self.pending.append(self.current)
        return Exposure(self.current.alpha, window)

    def observe(self, stats: UpdateStats) -> dict[str, float]:
        """Take in a finished update (0: the values before the first) and learn when B decisions are judged.

        Returns the `exposure/*` and `controller/*` metrics known at this update; controller/advantage is that of the latest decision.
        Reward and terms are in nats a token, also where learning divides the terms by their spread, so that all updates compare.
        A decision whose look-ahead holds an update without its progress signal is dropped.
        """
        self.training.observe(stats)
        self._remember(stats)
        metrics = self._exposure_metrics(stats.exposure) if stats.update > 0 else {}
        for decision in [d for d in self.pending if d.update + self.config.lookahead <= stats.update]:
            self.pending.remove(decision)
            metrics |= self._judge(decision)
        if self.fresh >= self.config.batch:
            metrics["controller/advantage"] = self._learn(self._progress(stats.update))
        return metrics | {"controller/updates": float(self.policy_updates)}

    def state_dict(self) -> dict[str, Any]:
        """Everything that later proposals depend on, as tensors and plain values (loads with weights_only=True)."""
        return {
            "mode": "learned",
            "hidden": self.config.hidden,
            "parameters": {name: value.detach().clone() for name, value in self.parameters.items()},
            "adam": deepcopy(self.adam.state_dict()),
            "generator": self.generator.get_state(),
            "policy_updates": self.policy_updates,
            "training": self.training.state_dict(),
            "current": asdict(self.current) if self.current else None,
            "pending": [asdict(decision) for decision in self.pending],
            "judged": [asdict(decision) for decision in self.judged],
            "learning": list(self.learning),
            "grounding": list(self.grounding),
            "fresh": self.fresh,
            "signals": dict(self.signals),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken. Raises CheckpointError when it is of another mode or policy width."""
        check_mode(state, "learned")
        if state["hidden"] != self.config.hidden:
            raise CheckpointError(f"the checkpoint's exposure policy has hidden {state['hidden']}: set exposure.hidden to that")
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(state["parameters"][name])
        self.adam.load_state_dict(deepcopy(state["adam"]))
        self.generator.set_state(state["generator"])
        self.policy_updates = state["policy_updates"]
        self.training = TrainingState(**state["training"])
        self.current = Decision(**state["current"]) if state["current"] else None
        self.pending = [Decision(**decision) for decision in state["pending"]]
        self.judged = [Decision(**decision) for decision in state["judged"]]
        self.learning, self.grounding = list(state["learning"]), list(state["grounding"])
        self.fresh = state["fresh"]
        self.signals = {update: tuple(pair) for update, pair in state["signals"].items()}

    def _decide(self, step: int, window: int) -> Decision:
        features = self.training.features(self._progress(step))
        a_N, b_N = policy.concentrations(self.parameters, torch.tensor([features], dtype=torch.float64))
        sample = policy.sample(a_N, b_N, self.generator).item()
        alpha = min(self.config.clip_high, max(self.config.clip_low, sample))
        return Decision(window, step, features, sample, alpha, a_N.item(), b_N.item(), policy.entropy(a_N, b_N).item())

    def _remember(self, stats: UpdateStats) -> None:
        if stats.progress is not None:
            self.signals[stats.update] = (stats.progress, stats.grounding)
        self.signals = {t: pair for t, pair in self.signals.items() if t >= stats.update - self.config.lookahead}

    def _judge(self, decision: Decision) -> dict[str, float]:
        times = range(decision.update, decision.update + self.config.lookahead + 1)
        if any(t not in self.signals for t in times):
            return {}
        progress, grounding = zip(*(self.signals[t] for t in times), strict=True)
        learning = reward.learning_progress(progress, self.config.discount, self.config.positive_part)
        grounded = reward.grounding_level(grounding[1:], self.config.discount) if self.config.grounding != "off" else 0.0
        keep = max(MEMORY, self.config.batch + self.config.replay)
        self.judged = [*self.judged, decision][-keep:]
        self.learning = [*self.learning, learning][-keep:]
        self.grounding = [*self.grounding, grounded][-keep:]
        self.fresh += 1
        (whole,) = reward.combine([learning], [grounded], self.config.grounding_weight)
        terms = {"controller/alpha": decision.alpha, "controller/reward": whole, "controller/learning_progress": learning}
        return terms | ({"controller/grounding": grounded} if self.config.grounding != "off" else {})

    def _rewards(self) -> list[float]:
        """Rewards of the remembered decisions to learn from, all on the present scale of the two terms."""
        scales = (reward.running_std(self.learning), reward.running_std(self.grounding)) if self.config.normalize_terms else (1.0, 1.0)
        return reward.combine(self.learning, self.grounding, self.config.grounding_weight, scales)

    def _advantages(self, count: int) -> list[float]:
        rewards = self._rewards()
        if self.config.advantage == "ema":
            return reward.ema_advantages(rewards, count, self.config.ema_decay)
        return reward.batch_advantages(rewards[-count:])

    def _learn(self, progress: float) -> float:
        """One policy update on the fresh decisions and the replayed ones; returns the latest one's advantage."""
        decisions = self.judged[-(self.fresh + self.config.replay) :]
        advantages = self._advantages(len(decisions))
        state_NF = _column([decision.features for decision in decisions])
        alpha_N = _column([decision.sample for decision in decisions])
        then = (_column([decision.a for decision in decisions]), _column([decision.b for decision in decisions]))
        weight_N = policy.importance_weights(alpha_N, then, policy.concentrations(self.parameters, state_NF))
        weight_N[-self.fresh :] = 1.0  # fresh decisions as the paper has them
        start, end = self.config.entropy_target_start, self.config.entropy_target_end
        target = start + (end - start) * progress
        coef, floor = self.config.entropy_coef, self.config.entropy_floor
        self.adam.zero_grad()
        policy.policy_loss(self.parameters, state_NF, alpha_N, weight_N * _column(advantages), target, coef, floor).backward()
        self.adam.step()
        self.fresh = 0
        self.policy_updates += 1
        return advantages[-1]

    def _exposure_metrics(self, exposure: Exposure) -> dict[str, float]:
        """α in force, and the policy that it was drawn from, unless it is the warm-up's."""
        metrics = {"exposure/alpha": exposure.alpha}
        known = (*self.judged, *self.pending, *([self.current] if self.current else []))
        decision = next((d for d in reversed(known) if d.number == exposure.decision_id), None)
        if decision is None:
            return metrics
        a, b = decision.a, decision.b
        return metrics | {"exposure/a": a, "exposure/b": b, "exposure/mean": a / (a + b), "exposure/entropy": decision.entropy}

    def _progress(self, step: int) -> float:
        return min(1.0, step / self.updates)


def _column(values: list[Any]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def check_mode(state: dict[str, Any], mode: str) -> None:
    """Raise CheckpointError unless the exposure state was saved by `mode`."""
    if state.get("mode") != mode:
        raise CheckpointError(f"the checkpoint's exposure.mode is {state.get('mode')}, the configuration's is {mode}: use the checkpoint's")
