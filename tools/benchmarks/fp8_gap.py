"""What FP8 costs in quality: the same weights, prompts and responses, with the layers' products in model.dtype and in FP8."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from rich import box
from rich.table import Table
from torch import Tensor

from megatron_atesd.config import Precision, PrecisionConfig, TrainConfig
from megatron_atesd.distill.divergence import Divergence
from megatron_atesd.distill.readings import Example
from megatron_atesd.distill.step import distill_step, measure_step
from megatron_atesd.distill.teacher import Teacher
from megatron_atesd.errors import ConfigError
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.fp8 import FP8
from megatron_atesd.model.megatron_config import megatron_settings
from megatron_atesd.model.supported import check_fp8
from megatron_atesd.train.training_run import TrainingRun

# Whole divergence, nothing clipped, at temperature 1: the distance of two distributions.
DISTANCE = Divergence("forward_kl")


@dataclass(frozen=True)
class Gap:
    """FP8 against model.dtype, the same in everything else.

    student_kl, teacher_kl: KL(model.dtype ‖ FP8), nats a response token, of each role's own prompts. loss: relative change of the
    distillation loss with both roles in FP8; loss_of_student, loss_of_teacher: with that one alone. gradient_cosine, gradient_norm: of
    the student's gradient with both in FP8 against the one without; the norm as a ratio.
    """

    precision: str
    student_kl: float
    teacher_kl: float
    loss_of_student: float
    loss_of_teacher: float
    loss: float
    gradient_cosine: float
    gradient_norm: float


def fp8_gaps(run: TrainingRun, examples: Sequence[Example], precisions: Sequence[Precision]) -> list[Gap]:
    """The gap of each precision on this data-parallel rank's `examples`, over all ranks. Collective over all ranks."""
    whole = _loss(run, examples, None, None)
    with _gradient(run, examples, None) as gradient:
        plain = [part.clone() for part in gradient]
    return [_gap(run, examples, precision, whole, plain) for precision in precisions]


def _gap(run: TrainingRun, examples: Sequence[Example], precision: Precision, whole: float, plain: Sequence[Tensor]) -> Gap:
    if precision == "fp8_delayed":  # whose scales are those of passes before
        with _gradient(run, examples, precision):
            pass
    with _gradient(run, examples, precision) as gradient:
        products = _dot(plain, plain), _dot(gradient, gradient), _dot(plain, gradient)
    return Gap(
        precision=precision,
        student_kl=_distance(run, [replace(e, teacher_prompt=e.student_prompt) for e in examples], precision),
        teacher_kl=_distance(run, [replace(e, student_prompt=e.teacher_prompt) for e in examples], precision),
        loss_of_student=_loss(run, examples, precision, None) / whole - 1,
        loss_of_teacher=_loss(run, examples, None, precision) / whole - 1,
        loss=_loss(run, examples, precision, precision) / whole - 1,
        gradient_cosine=products[2] / (products[0] * products[1]) ** 0.5,
        gradient_norm=(products[1] / products[0]) ** 0.5,
    )


def _distance(run: TrainingRun, examples: Sequence[Example], precision: Precision) -> float:
    """KL(model.dtype ‖ precision) of one set of weights that sees the same prompts twice."""
    return _measure(run, examples, precision, None, DISTANCE).kl


def _loss(run: TrainingRun, examples: Sequence[Example], student: Precision | None, teacher: Precision | None) -> float:
    return _measure(run, examples, student, teacher, run.divergence).loss


def _measure(
    run: TrainingRun, examples: Sequence[Example], student: Precision | None, teacher: Precision | None, divergence: Divergence
) -> Any:
    """Both roles with the present weights."""
    with run.model.computing_in(student):
        judge = Teacher(run.model, "live", precision=teacher)
        return measure_step(run.model, judge, examples, divergence, run.config.parallel.micro_batch_tokens)


@contextmanager
def _gradient(run: TrainingRun, examples: Sequence[Example], precision: Precision | None) -> Iterator[list[Tensor]]:
    """The gradient of the distillation loss with both roles in `precision`, as this rank's buffers: valid inside."""
    run.optimization.zero_grad()
    with run.model.computing_in(precision):
        judge = Teacher(run.model, "live", precision=precision)
        distill_step(run.optimization.wrapped, run.model, judge, examples, run.divergence, run.config.parallel.micro_batch_tokens)
    yield [buffer.grad_data for chunk in run.optimization.wrapped for buffer in cast("Any", chunk).buffers]
    run.optimization.zero_grad()


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Inner product over the ranks of one model; norms, which tensor ranks share, count once a rank."""
    total = torch.zeros((), dtype=torch.float64, device=left[0].device)
    for a, b in zip(left, right, strict=True):
        total += torch.linalg.vecdot(a.flatten(), b.flatten()).double()
    dist.all_reduce(total, group=parallel_state.get_model_parallel_group())
    return total.item()


def for_comparison(config: TrainConfig, problems: int) -> TrainConfig:
    """Settings of a run that trains nothing: every rank's gradient stays whole, and the student answers in model.dtype.

    Raises ConfigError where both roles see the same prompt, so that there is no loss to change.
    """
    if config.exposure.mode == "none":
        raise ConfigError("exposure.mode is none: student and teacher see the same, so there is no loss to compare; set it to fixed")
    optimizer, ddp = {**config.optimizer, "use_distributed_optimizer": False}, {**config.ddp, "overlap_param_gather": False}
    data = replace(config.data, batch=problems)
    return replace(config, data=data, optimizer=optimizer, ddp=ddp, precision=PrecisionConfig())


def usable(config: TrainConfig, architecture: Architecture, wanted: Sequence[str]) -> list[Precision]:
    """The wanted FP8 precisions, or without any those that can be computed here. Raises ConfigError where there are none."""
    if wanted:
        if unknown := set(wanted).difference(FP8):
            raise ConfigError(f"--recipes has {', '.join(sorted(unknown))}, must be of {', '.join(FP8)}")
        chosen: list[Precision] = [precision for precision in FP8 if precision in wanted]
        for precision in chosen:
            _check(config, architecture, precision)
        return chosen
    found, refusals = list[Precision](), list[str]()
    for precision in FP8:
        try:
            _check(config, architecture, precision)
            found.append(precision)
        except ConfigError as error:
            refusals.append(str(error))
    if not found:
        raise ConfigError(f"no FP8 recipe can be computed here: {refusals[0]}")
    return found


def _check(config: TrainConfig, architecture: Architecture, precision: Precision) -> None:
    """Raise ConfigError for a precision that this machine, the model's shape or section megatron does not allow."""
    in_fp8 = replace(config, precision=PrecisionConfig(precision))
    check_fp8(in_fp8, architecture)
    megatron_settings(in_fp8, architecture)


def gap_table(gaps: Sequence[Gap], reference: str) -> Table:
    """One row a precision."""
    headings = ("KL student", "KL teacher", "loss: student", "teacher", "both in FP8", "gradient cosine", "norm")
    table = Table(title=f"FP8 against {reference}", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("recipe")
    for heading in headings:
        table.add_column(heading, justify="right")
    for gap in gaps:
        changes = (f"{change:+.2%}" for change in (gap.loss_of_student, gap.loss_of_teacher, gap.loss))
        gradient = (f"{gap.gradient_cosine:.5f}", f"{gap.gradient_norm:.4f}")
        table.add_row(gap.precision, f"{gap.student_kl:.2e}", f"{gap.teacher_kl:.2e}", *changes, *gradient)
    return table
