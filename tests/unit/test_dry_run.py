"""A rank of any layout, without weights or other ranks: every recipe at its world size, and 512 GPUs of Qwen3-32B."""

import os
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from megatron_atesd.config import DistillConfig, ModelConfig, ParallelConfig, TrainConfig, load_config
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.plan import dry_run
from megatron_atesd.plan.dry_run import DryRank, DryRun, Shapes, dry_runs, stage_ranks
from megatron_atesd.plan.dry_run_table import dry_run_table
from megatron_atesd.plan.memory import activation_bytes, rank_memory, stage_adapters, stage_parameters
from megatron_atesd.plan.planned_update import Lengths, planned_update
from megatron_atesd.plan.published import QWEN3
from megatron_atesd.plan.speed import context_bytes, tensor_bytes
from tests.support import recipes

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TOY = Architecture("qwen3", 96, 288, 3, 4, 2, 32, 64, 256, 1e4, 1e-6, tied=True, qk_norm=True)
SMOLLM2 = Architecture("llama", 576, 1536, 30, 9, 3, 64, 49_152, 8192, 1e5, 1e-5, tied=True, qk_norm=False)
RECIPES = {f"{method}_qwen3_{size}": (QWEN3[size], 8) for method in ("atesd", "opsd", "aligned") for size in ("1.7b", "4b", "8b")}
RECIPES |= {f"{method}_qwen3_{size}_lora": (QWEN3[size], 1) for method in ("atesd", "opsd") for size in ("1.7b", "4b", "8b")}
RECIPES |= {"quickstart/atesd": (TOY, 2), "smollm2_sums/atesd": (SMOLLM2, 1)}
PARAMETERS = {"1.7b": 1_720_574_976, "4b": 4_022_468_096, "8b": 8_190_735_360, "32b": 32_762_123_264}  # of the published weights


def moved(run: DryRun, phase: str, group: str, *kinds: str) -> int:
    """Bytes of these kinds that a phase moves in a group."""
    return sum(t.bytes for t in run.traffic.get(phase, []) if t.group == group and t.kind in kinds)


def test_its_process_never_sees_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even before it has imported anything. Linux shows the environment with which a process began."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setattr(dry_run, "dry_run", Path.read_bytes)
    (began_with,) = dry_runs(cast("Any", [Path("/proc/self/environ")]))
    assert b"\0CUDA_VISIBLE_DEVICES=\0" in b"\0" + cast("bytes", began_with)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_every_recipe_has_a_dry_run():
    found = {str(path.relative_to(EXAMPLES).with_suffix("")) for path in recipes.RECIPES}
    assert found - {"quickstart/paper", "getting_started"} == set(RECIPES)  # for models as small as one likes


WALKED = [name for name in RECIPES if not name.startswith(("opsd", "aligned"))]  # these have the same model and layout


def recipe(name: str) -> TrainConfig:
    return load_config(["--config", str(EXAMPLES / f"{name}.yaml")])


def recipe_job(name: str) -> DryRank:
    (arch, world), config = RECIPES[name], recipe(name)
    return DryRank(config, arch, world, 0, Shapes.of(config))


def wide_jobs() -> list[DryRank]:
    """Qwen3-32B at TP 8 × PP 4 × DP 16: a first, a middle and a last stage."""
    parallel = ParallelConfig(tensor=8, pipeline=4, sequence=True)
    config = TrainConfig(
        model=ModelConfig("Qwen3-32B", "bf16"),
        parallel=parallel,
        distill=DistillConfig(chunk=4096),
        optimizer={"use_distributed_optimizer": True},
    )
    return [DryRank(config, QWEN3["32b"], 512, rank, Shapes(4, length=2048, response=1024)) for rank in stage_ranks(config, 512)]


def small_job(
    tensor: int, pipeline: int, virtual: int, rank: int, context: int = 1, packed: bool = False, target: Any = "teacher", **recompute: Any
) -> DryRank:
    """Qwen3-0.6B on 8 GPUs, with torch's kernels."""
    parallel = ParallelConfig(tensor, pipeline, virtual, sequence=tensor > 1, context=context, packed=packed)
    model, distill = ModelConfig("Qwen3-0.6B", "bf16", "sdpa"), DistillConfig(teacher="ema", chunk=4096, target=target)
    config = TrainConfig(model=model, parallel=parallel, distill=distill, megatron=recompute)
    return DryRank(config, QWEN3["0.6b"], 8, rank, Shapes(4, 512, response=256, context=context, packed=packed))


FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
SMALL = {
    "interleaved, first stage": small_job(1, 4, 7, rank=0),
    "interleaved, last stage": small_job(1, 4, 7, rank=6),
    "recompute, TP × PP": small_job(2, 4, 1, rank=0, **FULL),
    "recompute, TP": small_job(2, 1, 1, rank=0, **FULL),
    "context": small_job(1, 1, 1, rank=0, context=2),
    "mix, TP": small_job(2, 1, 1, rank=0, target="mix_exposures"),
    "context, packed, TP × PP": small_job(2, 2, 1, rank=7, context=2, packed=True),
}


@pytest.fixture(scope="module")
def walked() -> list[DryRun]:
    return dry_runs([*map(recipe_job, WALKED), *SMALL.values(), *wide_jobs()])


@pytest.fixture(scope="module")
def runs(walked: Sequence[DryRun]) -> Sequence[DryRun]:
    return walked[-3:]


def held(run: DryRun) -> list[int]:
    return [run.parameters, run.weights, run.gradients, run.optimizer, run.teacher]


def planned(job: DryRank, run: DryRun) -> list[float]:
    """What the plan says of the same rank."""
    work = planned_update(job.config, job.arch, job.world, Lengths.of(job.config))
    always = rank_memory(work, run.stage).always
    held = (always[name] for name in ("gradients (fp32)", "master weights and moments", "teacher"))
    return [stage_parameters(work, run.stage) + stage_adapters(work), always["weights"] + always.get("adapters", 0.0), *held]


@pytest.mark.parametrize("name", WALKED)
def test_the_plan_of_a_recipe_is_what_megatron_allocates(walked: Sequence[DryRun], name: str):
    run = walked[WALKED.index(name)]
    assert planned(recipe_job(name), run) == pytest.approx(held(run), rel=0.01)


def test_the_plan_of_512_gpus_is_what_megatron_allocates(runs: Sequence[DryRun]):
    for job, run in zip(wide_jobs(), runs, strict=True):
        assert planned(job, run) == pytest.approx(held(run), rel=0.01)


def planned_activations(job: DryRank, run: DryRun) -> float:
    shapes = job.shapes
    prompt = shapes.length - shapes.response
    work = planned_update(job.config, job.arch, job.world, Lengths(prompt, prompt, shapes.response))
    batch = work.data * shapes.sequences * run.micro_batches
    work = replace(work, micro_batch_tokens=shapes.sequences * shapes.length, batch=batch)
    return activation_bytes(work, run.stage, fused_norm=False)


def test_the_plan_of_512_gpus_has_the_activations_of_the_schedule(runs: Sequence[DryRun]):
    for job, run in zip(wide_jobs(), runs, strict=True):
        assert planned_activations(job, run) == pytest.approx(run.activations, rel=0.05)


@pytest.mark.parametrize("name", SMALL)
def test_the_plan_of_other_schedules_is_what_a_rank_holds(walked: Sequence[DryRun], name: str):
    job, run = SMALL[name], walked[len(WALKED) + list(SMALL).index(name)]
    assert planned(job, run) == pytest.approx(held(run), rel=0.01)
    assert planned_activations(job, run) == pytest.approx(run.activations, rel=0.05)


def test_the_plan_counts_the_messages_between_tensor_ranks(runs: Sequence[DryRun]):
    job, middle = wide_jobs()[1], runs[1]
    work = planned_update(job.config, job.arch, job.world, Lengths.of(job.config))
    tokens = 4 * middle.micro_batches * 2048
    for phase, passes in (("teacher", 4), ("student", 10)):
        gathered = moved(middle, phase, "tensor", "allgather_base", "reduce_scatter_base")
        assert tensor_bytes(work, tokens, passes) == gathered * 7 / 8  # a rank's own eighth is not sent


def test_the_plan_counts_the_keys_and_values_between_context_ranks(walked: Sequence[DryRun]):
    """Gathered forward and their gradients scattered backward; besides, on this last stage, the hidden states of both passes."""
    job, run = SMALL["context"], walked[len(WALKED) + list(SMALL).index("context")]
    work = planned_update(job.config, job.arch, job.world, Lengths.of(job.config))
    tokens = 4 * 512
    hidden = tokens * job.arch.hidden * 2
    for phase, passes in (("teacher", 1), ("student", 2)):
        gathered = moved(run, phase, "context", "allgather_base", "reduce_scatter_base")
        assert context_bytes(work, tokens, passes) == (gathered - passes * hidden) / 2  # a rank's own half is not sent


def test_a_mix_sends_the_messages_of_two_passes_of_the_teacher(walked: Sequence[DryRun]):
    mix, plain = (walked[len(WALKED) + list(SMALL).index(name)] for name in ("mix, TP", "recompute, TP"))
    sent = [moved(run, "teacher", "tensor", "allgather_base", "reduce_scatter_base") for run in (mix, plain)]
    assert sent[0] == 2 * sent[1] > 0


@pytest.mark.parametrize("name", WALKED)
def test_data_ranks_of_a_recipe_sum_all_gradients_once(walked: Sequence[DryRun], name: str):
    run, tokens = walked[WALKED.index(name)], 4  # their count is summed as well
    assert moved(run, "student", "data", "allreduce_coalesced", "allreduce") == run.gradients + tokens


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("opsd")])
def test_a_baseline_has_the_layout_that_was_walked(name: str):
    assert replace(recipe_job(name), config=recipe(name.replace("opsd", "atesd"))) == recipe_job(name.replace("opsd", "atesd"))


def test_512_gpus_hold_the_published_parameters(runs: Sequence[DryRun]):
    first, middle, last = runs
    assert [run.stage for run in runs] == [0, 1, 3]
    layer_norms = 64 * (2 * 5120 + 2 * 128) + 5120  # the only weights that tensor ranks share
    assert 8 * (first.parameters + 2 * middle.parameters + last.parameters) - 7 * layer_norms == PARAMETERS["32b"]


def test_the_distributed_optimizer_divides_its_state_among_data_ranks(runs: Sequence[DryRun]):
    assert [run.optimizer for run in runs] == pytest.approx([run.parameters * 12 / 16 for run in runs], rel=0.001)
    assert [moved(run, "optimizer", "data", "allgather_into_tensor_coalesced") for run in runs] == [run.weights for run in runs]


def test_a_middle_stage_passes_activations_on_and_gradients_back(runs: Sequence[DryRun]):
    activation = 4 * 2048 * 5120 * 2 // 8  # sequence parallelism: an eighth of them on each tensor rank
    first, middle, last = runs
    assert moved(middle, "student", "pipeline", "send") == 2 * middle.micro_batches * activation
    assert moved(middle, "student", "pipeline", "recv") == 2 * middle.micro_batches * activation
    assert moved(first, "teacher", "pipeline", "recv") == moved(last, "teacher", "pipeline", "send") == 0


def test_sequence_parallelism_gathers_and_scatters_twice_a_layer_and_pass(runs: Sequence[DryRun]):
    _, middle, _ = runs
    whole, layers = 4 * 2048 * 5120 * 2, 16
    assert moved(middle, "teacher", "tensor", "allgather_base") == middle.micro_batches * 2 * layers * whole
    assert moved(middle, "teacher", "tensor", "reduce_scatter_base") == middle.micro_batches * 2 * layers * whole


def test_the_table_has_a_column_for_each_rank(runs: Sequence[DryRun]):
    console = Console(width=200, record=True, file=StringIO())
    console.print(dry_run_table(runs))
    rows = {line.split("│")[1].strip(): line for line in console.export_text().splitlines() if "│" in line}
    walked = [f"{run.micro_batches} × {run.shapes.sequences} × {run.shapes.length:,}" for run in runs]
    assert [cell.strip() for cell in rows["micro-batches × sequences × tokens"].split("│")[2:5]] == walked
    assert [cell.strip() for cell in rows["optimizer, GiB"].split("│")[2:5]] == [f"{run.optimizer / 2**30:.2f}" for run in runs]
