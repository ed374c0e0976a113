"""Rules between the settings of section distill, and between them and others."""

from collections.abc import Iterator

from megatron_atesd.config.schema import TrainConfig
from megatron_atesd.config.signals import HELD_OUT, probe_interval


def distill_problems(config: TrainConfig) -> Iterator[str]:
    """The broken ones; every single number keeps its bound."""
    if config.rollout.temperature == 0 and config.distill.temperature is None:
        yield "rollout.temperature is 0 and distill.temperature is null, so both logits would be divided by 0; set distill.temperature to 1"
    yield from _refresh_problems(config) if config.distill.teacher == "refreshed" else ()
    yield from _mix_problems(config) if config.distill.target != "teacher" else ()


def _refresh_problems(config: TrainConfig) -> Iterator[str]:
    """What leaves a refreshed teacher without one progress of held-out problems, or without an update to be refreshed after."""
    distill, exposure = config.distill, config.exposure
    if exposure.progress not in HELD_OUT:
        yield (
            f"distill.teacher is refreshed on gains of exposure.progress, but {exposure.progress} is not measured on held-out problems or "
            f"moves with the teacher; choose {', '.join(HELD_OUT[:-1])} or {HELD_OUT[-1]}"
        )
    if exposure.bins > 1:
        yield f"distill.teacher is refreshed, but with exposure.bins {exposure.bins} each bin has a progress of its own; set it to 1"
    interval = probe_interval(exposure)
    if -(-distill.refresh_every // interval) * interval >= config.run.updates:
        yield (
            f"distill.refresh_every is {distill.refresh_every}, and progress is measured after every {interval} updates: the first "
            f"measurement that may refresh the teacher must be below run.updates {config.run.updates}; lower distill.refresh_every or "
            "exposure.probe_every, or set distill.teacher to initial"
        )


def _mix_problems(config: TrainConfig) -> Iterator[str]:
    """A mix of two readings that are the same, or of negative probabilities."""
    distill, exposure = config.distill, config.exposure
    if exposure.mode == "none":
        yield (
            f"distill.target is {distill.target}, but with exposure.mode none the teacher sees the student's prompt at every exposure: "
            "there is nothing to mix; set one of the two otherwise"
        )
    if distill.target != "mix_exposures":
        if exposure.reference == "none" and config.prompt.teacher_thinking == config.prompt.student_thinking:
            yield (
                "distill.target is mix_unaided, but with exposure.reference none and equal thinking switches both prompts are one: there "
                "is nothing to mix; set one of them otherwise"
            )
        return
    if distill.mix_weight < 0:
        yield (
            f"distill.mix_weight is {distill.mix_weight}, but distill.target mix_exposures mixes probabilities; raise it to 0 or more, "
            "or set distill.target to mix_unaided"
        )
    if exposure.reference == "none":
        yield "distill.target is mix_exposures, but with exposure.reference none exposures make no difference; set one of the two otherwise"
    elif exposure.mode == "fixed" and set(exposure.fixed_by_bin if exposure.bins > 1 else [exposure.fixed]) == {distill.mix_exposure}:
        yield (
            f"distill.mix_exposure is {distill.mix_exposure}, the fixed exposure itself: there is nothing to mix; give another, or set "
            "distill.target to teacher"
        )
