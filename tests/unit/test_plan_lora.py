"""The planner's formulas for adapters on a frozen base."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from megatron_atesd.config import load_config
from megatron_atesd.model.counts import forward_flops, layer_adapters, loss_flops, matrix_flops
from megatron_atesd.plan.hardware import GPUS, Assumptions
from megatron_atesd.plan.memory import kept_inputs, rank_memory, stage_adapters, stage_parameters
from megatron_atesd.plan.planned_update import Lengths, PlannedUpdate, planned_update
from megatron_atesd.plan.published import QWEN3
from megatron_atesd.plan.search import RECOMPUTE, best_plan, layouts, make_plan, ways_out
from megatron_atesd.plan.speed import Phase, update_phases
from megatron_atesd.plan.tables import memory_table

RECIPE = str(Path(__file__).resolve().parents[2] / "examples" / "atesd_qwen3_8b.yaml")
H100, ASSUMED = GPUS["h100"], Assumptions()
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ONE = ("--parallel.tensor=1", "--parallel.sequence=false", "--parallel.micro_batch_tokens=8192")
AGAIN = ("--megatron.recompute_granularity=full", "--megatron.recompute_method=uniform", "--megatron.recompute_num_layers=1")
R64 = ("--lora.rank=64", "--lora.alpha=128")


def workload(*settings: str, size: str = "8b", gpus: int = 8) -> PlannedUpdate:
    config = load_config(["--config", RECIPE, *settings])
    return planned_update(config, QWEN3[size], gpus, Lengths.of(config))


def phases(work: PlannedUpdate) -> dict[str, Phase]:
    return {phase.name: phase for phase in update_phases(work, H100, ASSUMED)}


@pytest.mark.parametrize("size", ["1.7b", "4b", "8b"])
@pytest.mark.parametrize("gpu", ["h100", "a100"])
def test_every_size_fits_one_gpu_of_80_gb(size: str, gpu: str) -> None:
    """With all weights 8B does not, whatever is computed again."""
    work = workload(*R64, *ONE, *AGAIN, size=size, gpus=1)
    assert make_plan(work, GPUS[gpu], ASSUMED).peak < GPUS[gpu].memory
    full = make_plan(replace(work, adapters=None), GPUS[gpu], ASSUMED)
    assert (full.peak < GPUS[gpu].memory) == (size == "1.7b")


def test_parameters_of_a_layers_adapters_by_hand() -> None:
    """H 4096, Q 4096, K 1024, F 12288; at TP 2 the inputs of o and down, the outputs of the others are halved."""
    whole = 8192 + 2 * 5120 + 8192 + 2 * 16384 + 16384
    halved = (4096 + 2048) + 2 * (4096 + 512) + (2048 + 4096) + 2 * (4096 + 6144) + (6144 + 4096)
    assert [layer_adapters(QWEN3["8b"], ALL, 64, tensor) for tensor in (1, 2)] == [64 * whole, 64 * halved]
    assert layer_adapters(QWEN3["8b"], ("k_proj", "down_proj"), 16, 2) == 16 * ((4096 + 512) + (6144 + 4096))
    assert stage_adapters(workload(*R64, *ONE, gpus=1)) == 36 * 64 * whole


@pytest.mark.parametrize(
    ("settings", "each", "taught"),
    [
        ((), 4 + 12, 0),
        (("--distill.teacher=ema",), 4 + 12, 2 + 4),
        (("--distill.teacher=live",), 4 + 12, 0),
        (("--lora.start=somewhere",), 4 + 12, 2),
        (("--lora.dtype=fp32", "--distill.teacher=ema"), 4 + 8, 4),
    ],
)
def test_gradients_optimizer_and_teacher_are_those_of_the_adapters(settings: tuple[str, ...], each: int, taught: int) -> None:
    """Bytes a parameter of the adapters: fp32 gradient, moments, and of bf16 adapters the fp32 master weight."""
    work = workload(*R64, *ONE, *settings, gpus=1)
    always, adapters = rank_memory(work, 0).always, stage_adapters(work)
    assert always["weights"] == 2 * 8_190_735_360
    assert always["adapters"] == adapters * (4 if "--lora.dtype=fp32" in settings else 2)
    assert always["gradients (fp32)"] + always["master weights and moments"] == each * adapters
    assert always["teacher"] == taught * adapters


def test_a_frozen_head_has_no_gradient_in_the_loss() -> None:
    """Three products instead of four, and of the gradients only those of the hidden states (4 bytes, and their rounded copy)."""
    frozen, learning = workload(*R64), workload()
    assert phases(frozen)["loss"].flops == 3 / 4 * phases(learning)["loss"].flops == 3 * 2 * 16 * 1024 * 4096 * 151_936 / 4
    held = [rank_memory(work, 0).phases["student"]["gradients of the loss"] for work in (learning, frozen)]
    assert held[0] - held[1] == pytest.approx(6 * 151_936 * 4096 / 4)
    responses = frozen.fullest(256) * 1024 / 1280
    assert held[1] == pytest.approx(6 * responses * 4096)


def test_the_students_pass_leaves_out_the_gradients_of_frozen_matrices() -> None:
    """One GPU, 32 sequences: matrices forward and once backward, attention three times, adapters three times and again where recomputed."""
    arch, length = QWEN3["8b"], 256 + 1024
    for settings, again in (((), 0), (AGAIN, 1)):
        work = workload(*R64, *ONE, *settings, gpus=1)
        base = (3 + again) * forward_flops(arch, length) - matrix_flops(arch, length)
        adapters = (3 + again) * length * 2 * stage_adapters(work)
        assert phases(work)["student forward and backward"].flops == pytest.approx(32 * (base + adapters))


def test_only_a_teacher_with_adapters_computes_them() -> None:
    base, average, full = workload(*R64), workload(*R64, "--distill.teacher=ema"), workload()
    flops = [phases(work)["teacher forward"].flops for work in (base, average, full)]
    assert flops[0] == flops[2]
    assert flops[1] - flops[0] == pytest.approx(16 * (4096 + 1024) * 2 * stage_adapters(average))


def test_data_ranks_and_the_step_see_adapters_alone() -> None:
    work = workload(*R64)
    assert work.replicas == 2
    assert phases(work)["gradients over data ranks"].sent == 4 * stage_adapters(work)
    assert phases(work)["optimizer"].memory == 38 * stage_adapters(work)


def test_rollouts_read_the_adapters_beside_the_weights() -> None:
    work, full = workload(*R64, *ONE, gpus=1), workload(*ONE, gpus=1)
    steps = 2 * 1024  # two batches of 16
    assert phases(work)["rollout"].memory - phases(full)["rollout"].memory == pytest.approx(steps * 2 * stage_adapters(work))


def test_a_search_keeps_the_adapters_and_what_would_do_is_recompute() -> None:
    work = workload(*R64, "--parallel.tensor=1", "--parallel.sequence=false", "--rollout.max_new_tokens=16384", gpus=1)
    assert all(layout.adapters == work.adapters for layout in layouts(work, ASSUMED))
    assert best_plan(work, H100, ASSUMED) is None
    ways = ways_out(work, H100, ASSUMED)
    assert ways[0][0] == RECOMPUTE
    assert not ways[0][1].work.distributed


def test_the_table_names_adapters_and_what_learns() -> None:
    work = workload(*R64, *ONE, *AGAIN, gpus=1)
    console = Console(width=120, record=True, file=StringIO())
    console.print(memory_table(make_plan(work, H100, ASSUMED), H100))
    rows = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in console.export_text().splitlines() if "│" in line}
    assert rows["parameters held (millions)"] == f"{(stage_parameters(work, 0) + stage_adapters(work)) / 1e6:,.0f}"
    assert rows["trained parameters (millions)"] == "175"
    assert rows["adapters"] == "0.33"
    assert loss_flops(QWEN3["8b"], 1) == 4 * 2 * 4096 * 151_936


def test_frozen_layers_send_no_input_again_under_sequence_parallelism() -> None:
    """At TP 4, whole sequences: eight gathers or scatters a layer where all weights have ten."""
    work, full = workload(*R64), workload()
    assert (work.tensor, work.sequence) == (4, True)
    tokens = 16 * (256 + 1024)
    sent = [phases(each)["student forward and backward"].sent for each in (work, full)]
    assert sent == [passes * 36 * tokens * 4096 * 2 * 3 / 4 for passes in (8, 10)]


def test_adapters_keep_the_gathered_input_beside_torchs_layers_and_a_part_beside_transformer_engines() -> None:
    """TP 4: H of two fused products in bf16, Q that attention keeps, F / 4, and seven times r."""
    work = workload(*R64)
    assert work.ring
    assert kept_inputs(work, gpu=True) == 2 * (2 * 4096 / 4 + 12288 / 4 + 7 * 64)
    assert kept_inputs(replace(work, ring=False), gpu=True) == 2 * (2 * 4096 + 12288 / 4 + 7 * 64)
