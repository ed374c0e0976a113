"""Dry runs of LoRA: a rank holds what the plan says, walks the 8B model on one GPU, and sends and reduces adapters only."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_atesd.config import DistillConfig, LoraConfig, ModelConfig, ParallelConfig, TrainConfig, load_config
from megatron_atesd.plan.dry_run import DryRank, DryRun, Shapes, dry_runs
from megatron_atesd.plan.memory import activation_bytes, rank_memory, stage_adapters, stage_parameters
from megatron_atesd.plan.planned_update import Lengths, planned_update
from megatron_atesd.plan.published import QWEN3
from megatron_atesd.plan.speed import tensor_bytes

pytestmark = pytest.mark.slow

RECIPE = str(Path(__file__).resolve().parents[2] / "examples" / "atesd_qwen3_8b.yaml")
RECOMPUTE = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
ON_ONE_GPU = (
    "--lora.rank=64",
    "--lora.alpha=128",
    "--parallel.tensor=1",
    "--parallel.sequence=false",
    "--parallel.micro_batch_tokens=16384",
)

R64 = LoraConfig(rank=64)


def whole_8b() -> DryRank:
    """The 8B recipe's model and lengths on one GPU."""
    config = load_config(["--config", RECIPE, *ON_ONE_GPU, *(f"--megatron.{name}={value}" for name, value in RECOMPUTE.items())])
    return DryRank(config, QWEN3["8b"], 1, 0, Shapes.of(config))


def small(
    tensor: int = 1,
    pipeline: int = 1,
    rank: int = 0,
    context: int = 1,
    teacher: Any = "initial",
    lora: LoraConfig = R64,
    distributed: bool = False,
    **megatron: Any,
) -> DryRank:
    """Qwen3-0.6B on 8 GPUs, with torch's kernels."""
    config = TrainConfig(
        model=ModelConfig("Qwen3-0.6B", "bf16", "sdpa"),
        parallel=ParallelConfig(tensor, pipeline, sequence=tensor > 1, context=context),
        distill=DistillConfig(teacher=teacher, chunk=4096),
        lora=lora,
        optimizer={"use_distributed_optimizer": distributed},
        megatron=megatron,
    )
    return DryRank(config, QWEN3["0.6b"], 8, rank, Shapes(4, 512, response=256, context=context))


JOBS = {
    "8B on one GPU": whole_8b(),
    "one rank": small(),
    "TP, ema": small(2, teacher="ema"),
    "TP × PP, first": small(2, 2, lora=LoraConfig(rank=16, dropout=0.1)),
    "TP × PP, last": small(2, 2, rank=7, lora=LoraConfig(rank=16, targets=["q_proj", "v_proj"])),
    "TP × PP, middle": small(2, 4, rank=2),
    "TP, recompute": small(2, **RECOMPUTE),
    "CP": small(context=2),
    "distributed, ema": small(teacher="ema", distributed=True),
    "distributed, fp32": small(teacher="live", lora=LoraConfig(rank=64, dtype="fp32", targets=["o_proj", "down_proj"]), distributed=True),
    "a start": small(lora=LoraConfig(rank=16, start="somewhere")),
}


@pytest.fixture(scope="module")
def walked() -> dict[str, DryRun]:
    return dict(zip(JOBS, dry_runs(list(JOBS.values())), strict=True))


def work_of(job: DryRank, run: DryRun) -> Any:
    shapes = job.shapes
    prompt = shapes.length - shapes.response
    work = planned_update(job.config, job.arch, job.world, Lengths(prompt, prompt, shapes.response))
    batch = work.data * shapes.sequences * run.micro_batches
    return replace(work, micro_batch_tokens=shapes.sequences * shapes.length, batch=batch)


@pytest.mark.parametrize("name", JOBS)
def test_the_plan_is_what_megatron_allocates(walked: dict[str, DryRun], name: str) -> None:
    run, work = walked[name], work_of(JOBS[name], walked[name])
    always = rank_memory(work, run.stage).always
    assert run.parameters == pytest.approx(stage_parameters(work, run.stage) + stage_adapters(work), rel=0.001)
    assert run.trained == stage_adapters(work)
    weights = always["weights"] + always["adapters"]
    planned = [weights, always["gradients (fp32)"], always["master weights and moments"], always["teacher"]]
    assert planned == pytest.approx([run.weights, run.gradients, run.optimizer, run.teacher], rel=0.01)


@pytest.mark.parametrize("name", JOBS)
def test_the_plan_has_the_activations_of_the_schedule(walked: dict[str, DryRun], name: str) -> None:
    run = walked[name]
    assert activation_bytes(work_of(JOBS[name], run), run.stage, fused_norm=False) == pytest.approx(run.activations, rel=0.05)


def sent(run: DryRun, phase: str, group: str, *kinds: str) -> int:
    return sum(t.bytes for t in run.traffic.get(phase, []) if t.group == group and t.kind in kinds)


def test_data_ranks_sum_the_gradients_of_adapters_alone(walked: dict[str, DryRun]) -> None:
    run, tokens = walked["one rank"], 4  # their count is summed as well
    h, q, k, f = 1024, 2048, 1024, 3072
    assert run.trained == 28 * 64 * ((h + q) + 2 * (h + k) + (q + h) + 2 * (h + f) + (f + h))
    assert run.gradients == 4 * run.trained
    assert sent(run, "student", "data", "allreduce_coalesced", "allreduce") == 4 * run.trained + tokens


def test_frozen_layers_under_sequence_parallelism_gather_no_input_again(walked: dict[str, DryRun]) -> None:
    job, run = JOBS["TP × PP, middle"], walked["TP × PP, middle"]
    work, tokens = work_of(job, run), 4 * 512 * run.micro_batches
    for phase, passes in (("teacher", 4), ("student", 8)):
        gathered = sent(run, phase, "tensor", "allgather_base", "reduce_scatter_base")
        assert tensor_bytes(work, tokens, passes) == gathered / 2  # a rank's own half is not sent


def test_the_distributed_optimizer_gathers_adapters_alone(walked: dict[str, DryRun]) -> None:
    run = walked["distributed, ema"]
    assert sent(run, "optimizer", "data", "allgather_into_tensor_coalesced") == pytest.approx(2 * run.trained, rel=0.001)
