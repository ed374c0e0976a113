"""One step of the student on rollouts that are there: loss and gradients at one exposure, optimizer, teacher."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_atesd.distill.step import StepResult, distill_step
from megatron_atesd.records import Exposure, Rollout, TeacherContext
from megatron_atesd.train.training_run import TrainingRun


@dataclass(frozen=True)
class StudentStep:
    """contexts: what the teacher saw of each rollout. result: of both passes. grad_norm: before clipping. lr: the learning rate used."""

    contexts: Sequence[TeacherContext]
    result: StepResult
    grad_norm: float
    lr: float

    @property
    def skipped(self) -> bool:
        """Whether the loss or a gradient was not finite, so that nothing moved on any rank."""
        return math.isnan(self.grad_norm)


def student_step(run: TrainingRun, rollouts: Sequence[Rollout], exposure: Exposure, sampled: int = 0) -> StudentStep:
    """Distil this data-parallel rank's rollouts from the teacher under `exposure`. Collective over all ranks.

    sampled: of so many rollouts, the first ones, the KL of each token is kept.
    """
    run.optimization.zero_grad()
    contexts = run.exposed(rollouts, exposure)
    result = distill_step(
        run.optimization.wrapped,
        run.model,
        run.teacher,
        run.examples(rollouts, contexts),
        run.divergence,
        run.config.parallel.micro_batch_tokens,
        run.config.distill.normalize,
        bins=run.config.exposure.bins,
        sampled=sampled,
    )
    step = StudentStep(contexts, result, *run.optimization.step(result.loss + result.kl))
    if not step.skipped:
        if run.teacher.kind == "ema":  # which reads all weights, so that no pass can hide their gather
            run.optimization.weights_ready()
        run.teacher.update()
    return step
