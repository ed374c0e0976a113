"""One distillation step of the same case at every layout, in whichever version of megatron.core the process has."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.config import ParallelConfig, ScheduleConfig
from megatron_atesd.distill.step import distill_step
from megatron_atesd.distill.teacher import Teacher
from megatron_atesd.model.gpt import build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.parallel.session import session_of
from megatron_atesd.train.optimizer import build_optimization
from tests.support.distill_case import DIVERGENCE, examples
from tests.support.launch import run_distributed


@dataclass(frozen=True)
class Layout:
    processes: int
    parallel: ParallelConfig
    dtype: str = "fp32"


LAYOUTS = {
    "one process": Layout(1, ParallelConfig()),
    "TP 2": Layout(2, ParallelConfig(tensor=2)),
    "TP 2, SP": Layout(2, ParallelConfig(tensor=2, sequence=True)),
    "TP 2, SP, bf16": Layout(2, ParallelConfig(tensor=2, sequence=True), "bf16"),
    "PP 2": Layout(2, ParallelConfig(pipeline=2)),
    "PP 2, VP 2": Layout(2, ParallelConfig(pipeline=2, virtual_pipeline=2)),
    "CP 2": Layout(2, ParallelConfig(context=2)),
    "DP 2": Layout(2, ParallelConfig()),
    "TP 2, PP 2": Layout(4, ParallelConfig(tensor=2, pipeline=2)),
}


def stepped(inputs: Path, folder: Path) -> None:
    """folder/<layout>, <rank>: the numbers and the gradients of that rank, by name."""
    for processes in sorted({layout.processes for layout in LAYOUTS.values()}):
        run_distributed(_steps, processes, inputs, folder)


def _steps(inputs: Path, folder: Path) -> None:
    dist.init_process_group("gloo")
    for name, layout in LAYOUTS.items():
        if layout.processes == dist.get_world_size():
            torch.save(_step(inputs, layout), folder / f"{name}, {dist.get_rank()}")


def _step(inputs: Path, layout: Layout) -> dict[str, torch.Tensor | float]:
    parallel = layout.parallel
    with session_of(parallel):
        architecture = read_architecture(inputs / "student")
        sizes = (parallel.tensor, parallel.pipeline, parallel.sequence)
        config = transformer_config(architecture, *sizes, layout.dtype, {}, parallel.virtual_pipeline, context=parallel.context)
        model = build_model(architecture, config)
        load_hf_weights(model, inputs / "teacher")
        teacher = Teacher(model, "initial")
        load_hf_weights(model, inputs / "student")
        optimization = build_optimization(model, {"lr": 1e-3}, {}, ScheduleConfig(), 10)
        optimization.zero_grad()
        mine = examples(37)[parallel_state.get_data_parallel_rank() :: parallel_state.get_data_parallel_world_size()]
        result = distill_step(optimization.wrapped, model, teacher, mine, DIVERGENCE, 40, "token")
        numbers = {name: value for name, value in vars(result).items() if isinstance(value, float) and "seconds" not in name}
        return numbers | {name: parameter.main_grad.clone() for name, parameter in model.named_parameters()}  # pyright: ignore[reportAttributeAccessIssue]
