"""A student with its teacher and optimizer on the models of distill_case, that trains, saves and resumes as a run does."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.checkpoint.reading import model_state, read_folder
from megatron_atesd.config import ScheduleConfig
from megatron_atesd.distill.step import distill_step
from megatron_atesd.distill.teacher import Teacher
from megatron_atesd.model.gpt import HiddenStateGPT, build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.model.trained import MODEL_PREFIX
from megatron_atesd.parallel.groups import data_parallel_place
from megatron_atesd.train.optimizer import Optimization, build_optimization
from tests.support.distill_case import DIVERGENCE, examples

Kind = Literal["initial", "ema", "live"]


@dataclass(frozen=True)
class Session:
    """A student with its teacher and optimizer, as a training run has them."""

    model: HiddenStateGPT
    teacher: Teacher
    optimization: Optimization

    def train(self, updates: int) -> None:
        """On four examples an update, divided among the data-parallel ranks."""
        rank, size = data_parallel_place()
        for _ in range(updates):
            self.optimization.zero_grad()
            distill_step(self.optimization.wrapped, self.model, self.teacher, examples(37)[rank::size], DIVERGENCE, micro_batch_tokens=1)
            self.optimization.step()
            self.optimization.weights_ready()  # which the average reads
            self.teacher.update()

    def state(self, loading: bool) -> dict[str, Any]:
        model = model_state(self.model)
        optimizer = self.optimization.sharded_state_dict(model, loading)
        return {"model": model, "teacher": self.teacher.sharded_state_dict(), "optimizer": optimizer}

    def load(self, folder: Path) -> None:
        loaded = read_folder(folder, self.state(loading=True))
        self.model.load_state_dict({name.removeprefix(MODEL_PREFIX): value for name, value in loaded["model"].items()})
        self.teacher.load_state_dict(loaded["teacher"])
        self.optimization.load_state_dict(loaded["optimizer"])

    def weights(self) -> list[torch.Tensor]:
        """The student's weights and the teacher's (of an ema teacher the fp32 average)."""
        students = [parameter.detach().clone() for parameter in self.model.parameters()]
        return [*students, *(kept.clone() for kept in self.teacher.average or self.teacher.weights)]


def session(
    folder: Path,
    tensor: int = 1,
    dtype: str = "fp32",
    kind: Kind = "ema",
    distributed: bool = True,
    overlap: bool = False,
    bucket_size: int | None = None,
) -> Session:
    """bucket_size: values in a bucket of the gradient buffer, with `overlap`; None is megatron.core's, more than these models have."""
    architecture = read_architecture(folder / "student")
    model = build_model(architecture, transformer_config(architecture, tensor, 1, False, dtype))
    load_hf_weights(model, folder / "teacher")
    teacher = Teacher(model, kind, ema_decay=0.9)
    load_hf_weights(model, folder / "student")
    settings = {"lr": 1e-3, "clip_grad": 1.0, "weight_decay": 0.1, "use_distributed_optimizer": distributed}
    ddp = {"overlap_grad_reduce": overlap, "overlap_param_gather": overlap, "bucket_size": bucket_size}
    return Session(model, teacher, build_optimization(model, settings, ddp, ScheduleConfig(), 10))


def assert_close(got: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], tolerance: float) -> None:
    """Relative to each tensor's largest value."""
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * float(other.abs().max()))
