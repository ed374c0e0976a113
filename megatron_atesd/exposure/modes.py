"""Every exposure mode by its name, and those that learn nothing: fixed, schedules, step, random, none; the same verbs as the controller."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from megatron_atesd.config import ExposureConfig
from megatron_atesd.config.exposure_rules import stage
from megatron_atesd.exposure.aligned import AlignedExposure
from megatron_atesd.exposure.bins import BinnedExposure
from megatron_atesd.exposure.controller import Controller, check_mode, seeded_generator
from megatron_atesd.exposure.posterior import PosteriorExposure
from megatron_atesd.exposure.target_kl import TargetKLExposure
from megatron_atesd.exposure.windows import hold_window
from megatron_atesd.records import Exposure, UpdateStats


class Mode(Protocol):
    """What decides the exposure of each update."""

    def propose(self, step: int, scores: Sequence[float] | None = None) -> Exposure:
        """The exposure for update step + 1, after `step` finished updates.

        scores: of mode aligned's grid, on that update's rollouts; the other modes do without, and None tells nothing.
        """
        ...

    def observe(self, stats: UpdateStats) -> dict[str, float]:
        """Take in a finished update; returns metrics by name."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors that `load_state_dict` continues from exactly."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        ...


def make_mode(config: ExposureConfig, updates: int, seed: int) -> Mode:
    """The decider of config.mode for a training of `updates` updates; with bins one for each, whose seeds differ."""
    if config.bins == 1:
        return _decider(config, updates, seed)
    own = config.fixed_by_bin if config.mode == "fixed" else [config.fixed] * config.bins
    deciders = [_decider(replace(config, fixed=alpha), updates, seed + 2**63 * i) for i, alpha in enumerate(own)]
    return BinnedExposure(deciders)


def _decider(config: ExposureConfig, updates: int, seed: int) -> Mode:
    if config.mode == "posterior":
        return PosteriorExposure(config, updates, seed)
    if config.mode == "aligned":
        return AlignedExposure(config)
    if config.mode == "target_kl":
        return TargetKLExposure(config)
    return Controller(config, updates, seed) if config.mode == "learned" else RuleBasedExposure(config, updates, seed)


def highest_exposure(config: ExposureConfig) -> float:
    """No α of a run is above this (of the modes that draw or choose: the highest that they may), nor its bias check's."""
    if config.mode == "none":
        return 0.0
    if config.bias_check:
        return 1.0
    ends = max(config.start, config.end)
    fixed = max(config.fixed_by_bin, default=config.fixed) if config.bins > 1 else config.fixed
    named = {"fixed": fixed, "linear": ends, "cosine": ends, "step": max(config.levels, default=0.0)}
    also = [config.warmup_exposure] if config.mode == "aligned" or (config.warmup_updates and config.mode != "fixed") else []
    also += [config.probe_exposure] if config.progress == "probe_kl" else []
    return max([named.get(config.mode, config.clip_high), *also])


def scheduled(mode: str, start: float, end: float, share: float) -> float:
    """α at a share in [0, 1] of training: linear, or half a cosine wave, from start to end."""
    weight = share if mode == "linear" else (1 - math.cos(math.pi * share)) / 2
    return start + (end - start) * weight


class RuleBasedExposure:
    """An exposure that no reward moves.

    fixed and none (α = 0; the teacher sees the student's prompt) take no decision. The schedules and random keep one α a hold window
    after the warm-up, as the learned controller does, so that runs differ in nothing else; linear and cosine end at `end` in the last
    window.
    """

    def __init__(self, config: ExposureConfig, updates: int, seed: int) -> None:
        self.config = config
        self.updates = updates
        self.last_window = max(0, hold_window(config, updates - 1))
        self.generator = seeded_generator(seed)
        self.current = Exposure(config.warmup_exposure, -1)

    def propose(self, step: int, scores: Sequence[float] | None = None) -> Exposure:
        """See Mode."""
        window = hold_window(self.config, step)
        if self.config.mode in ("fixed", "none"):
            self.current = Exposure(self.config.fixed if self.config.mode == "fixed" else 0.0, -1)
        elif window != self.current.decision_id:
            self.current = Exposure(self._decide(step, window), window)
        return self.current

    def observe(self, stats: UpdateStats) -> dict[str, float]:
        """Only `exposure/alpha`, from the first update on."""
        return {"exposure/alpha": stats.exposure.alpha} if stats.update > 0 else {}

    def state_dict(self) -> dict[str, Any]:
        """Mode, exposure in force and RNG."""
        return {
            "mode": self.config.mode,
            "alpha": self.current.alpha,
            "decision_id": self.current.decision_id,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken. Raises CheckpointError when it is of another mode."""
        check_mode(state, self.config.mode)
        self.current = Exposure(state["alpha"], state["decision_id"])
        self.generator.set_state(state["generator"])

    def _decide(self, step: int, window: int) -> float:
        if self.config.mode == "step":
            return self.config.levels[stage(len(self.config.levels), self.config.step_at, step, self.updates)]
        if self.config.mode == "random":
            uniform = torch.rand((), generator=self.generator, dtype=torch.float64).item()
            return self.config.clip_low + (self.config.clip_high - self.config.clip_low) * uniform
        return scheduled(self.config.mode, self.config.start, self.config.end, window / max(1, self.last_window))
