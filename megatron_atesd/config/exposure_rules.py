"""Rules between the settings of section exposure, and between them and others."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import inf

from megatron_atesd.config.schema import OPTIMIZER_DEFAULTS, ExposureConfig, TrainConfig
from megatron_atesd.config.signals import FREE, WITH_GRADIENT, needs_each_probe

BINNED = ("fixed", "learned", "aligned", "posterior", "target_kl")  # modes whose α may differ between difficulty bins


def exposure_problems(config: TrainConfig) -> Iterator[str]:
    """The broken ones; every single number keeps its bound."""
    exposure, updates = config.exposure, config.run.updates
    if exposure.clip_low > exposure.clip_high:
        yield f"exposure.clip_low is {exposure.clip_low}, must not exceed exposure.clip_high {exposure.clip_high}; swap the two"
    if exposure.advantage == "batch" and exposure.batch < 2:
        yield "exposure.batch is 1 with exposure.advantage batch: one decision has no spread; set exposure.batch to 2 or advantage to ema"
    if exposure.entropy_target_end > exposure.entropy_target_start:
        yield (
            f"exposure.entropy_target_end is {exposure.entropy_target_end}, must not exceed exposure.entropy_target_start "
            f"{exposure.entropy_target_start}; the policy narrows with time, lower the end"
        )
    if exposure.entropy_floor is not None and exposure.entropy_floor >= exposure.entropy_target_end:
        yield (
            f"exposure.entropy_floor is {exposure.entropy_floor}, must be below exposure.entropy_target_end {exposure.entropy_target_end}, "
            "or the two penalties pull against each other; lower the floor"
        )
    yield from _signal_problems(exposure)
    yield from _aligned_problems(config) if exposure.mode == "aligned" else ()
    if exposure.bias_check > updates:
        yield f"exposure.bias_check is {exposure.bias_check}, must not exceed run.updates {updates}, for which the learning rate is planned"
    if exposure.bias_check and exposure.mode == "none":
        yield "exposure.bias_check compares exposures, but exposure.mode none has none; set it to 0, or choose another mode"
    if exposure.mode in ("learned", "aligned", "posterior", "target_kl") and exposure.warmup_updates >= updates:
        yield f"exposure.warmup_updates is {exposure.warmup_updates}, must be below run.updates {updates} for any decision to be taken"
    yield from _reference_problems(exposure)
    yield from _step_problems(exposure, updates) if exposure.mode == "step" else ()
    yield from _bin_problems(exposure) if exposure.bins > 1 else ()


def _reference_problems(exposure: ExposureConfig) -> Iterator[str]:
    if exposure.mode == "none" and exposure.reference != "own":
        yield f"exposure.reference is {exposure.reference}, but with exposure.mode none the teacher sees none; set one of the two otherwise"
    elif exposure.reference == "none" and (exposure.mode, exposure.fixed) != ("fixed", 0):
        yield (
            "exposure.reference is none, which leaves nothing to expose: no α makes a difference; set exposure.mode to fixed and "
            "exposure.fixed to 0"
        )
    if exposure.reference == "none" and exposure.bias_check:
        yield "exposure.bias_check compares exposures, but exposure.reference none has none; set it to 0, or choose another reference"


def _bin_problems(exposure: ExposureConfig) -> Iterator[str]:
    bins, edges, fixed = exposure.bins, exposure.bin_edges, exposure.fixed_by_bin
    if exposure.mode not in BINNED or exposure.reference == "none":
        which = "reference none" if exposure.reference == "none" else f"mode {exposure.mode}"
        yield f"exposure.bins is {bins}, but with exposure.{which} no bin can have an α of its own; set it to 1"
    if exposure.mode == "fixed" and (len(fixed) != bins or not all(0 <= alpha <= 1 for alpha in fixed)):
        yield f"exposure.fixed_by_bin is {fixed}, must be {bins} numbers from 0 to 1, one for each of exposure.bins"
    if edges and not (len(edges) == bins - 1 and all(before < after for before, after in pairwise([-inf, *edges, inf]))):
        yield f"exposure.bin_edges is {edges}, must be {bins - 1} rising numbers, one between each two of exposure.bins {bins}, or empty"


def _step_problems(exposure: ExposureConfig, updates: int) -> Iterator[str]:
    levels, step_at = exposure.levels, exposure.step_at
    if not levels or not all(0 <= level <= 1 for level in levels):
        yield f"exposure.levels is {levels}, must be one or more numbers from 0 to 1"
    if step_at and len(step_at) != len(levels) - 1:
        yield (
            f"exposure.step_at has {len(step_at)} numbers, but between {len(levels)} exposure.levels there are {len(levels) - 1} steps; "
            "give as many, or none for stages of equal length"
        )
    if not all(before < after for before, after in pairwise([0, *step_at, updates])):
        yield f"exposure.step_at is {step_at}, must be rising numbers of updates, above 0 and below run.updates {updates}"
    if not step_at and len(levels) > updates:
        yield f"exposure.levels has {len(levels)} stages, but run.updates is {updates}; give fewer"
    elif missed := _levels_without_a_window(exposure, updates):
        yield (
            f"exposure.levels {missed} are never played: each is over before a window of exposure.hold {exposure.hold} updates begins; "
            "lower exposure.hold or exposure.warmup_updates, or make the stages longer"
        )


def stage(levels: int, step_at: Sequence[int], step: int, updates: int) -> int:
    """Which of so many levels of mode step a window plays that begins after `step` updates of `updates`: one further after each of
    `step_at` updates; without them in stages of equal length."""
    return sum(at <= step for at in step_at) if step_at else step * levels // updates


def _levels_without_a_window(exposure: ExposureConfig, updates: int) -> list[float]:
    """Those of mode step that are over before a window begins."""
    starts = range(exposure.warmup_updates, updates, exposure.hold)
    played = {stage(len(exposure.levels), exposure.step_at, step, updates) for step in starts}
    return [level for number, level in enumerate(exposure.levels) if number not in played]


def _signal_problems(exposure: ExposureConfig) -> Iterator[str]:
    every = exposure.probe_every
    if every is not None and every > 1 and needs_each_probe(exposure):
        free = " or ".join(FREE)
        also = ", and exposure.grounding to off" if exposure.mode == "learned" and exposure.grounding != "off" else ""
        yield (
            f"exposure.probe_every is {every}, but exposure.mode {exposure.mode} judges every update; set it to 1 or null, or "
            f"exposure.progress to {free}{also}"
        )


def _aligned_problems(config: TrainConfig) -> Iterator[str]:
    exposure, optimizer = config.exposure, config.optimizer
    if exposure.progress not in WITH_GRADIENT:
        yield (
            f"exposure.progress is {exposure.progress}, which has no gradient for exposure.mode aligned to follow; choose "
            f"{', '.join(WITH_GRADIENT[:-1])} or {WITH_GRADIENT[-1]}"
        )
    if exposure.clip_low == exposure.clip_high:
        yield f"exposure.clip_low and clip_high are both {exposure.clip_low}: that leaves exposure.mode aligned no choice; set it to fixed"
    if exposure.progress == "train_accuracy" and config.data.batch == 1:
        yield "data.batch is 1, and one response is neither better nor worse than the others; raise it, or choose another exposure.progress"
    if optimizer.get("optimizer", "adam") != "adam" or optimizer.get("lr", OPTIMIZER_DEFAULTS["lr"]) == 0:
        yield "exposure.mode aligned scores exposures by a step of Adam; set optimizer.optimizer to adam and optimizer.lr above 0"
    for name in ("use_precision_aware_optimizer", "optimizer_cpu_offload"):
        if optimizer.get(name):
            yield f"optimizer.{name} is true, which keeps gradients where exposure.mode aligned cannot put weights; set it to false"
