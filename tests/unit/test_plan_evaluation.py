"""What the planner says of an evaluation."""

import heapq
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_atesd.config import load_config
from megatron_atesd.plan.evaluation import Evaluation, plan_evaluation, plan_evaluations, steps
from megatron_atesd.plan.hardware import GPUS, Assumptions
from megatron_atesd.plan.memory import kv_cache_bytes, stage_parameters
from megatron_atesd.plan.planned_update import Lengths, PlannedUpdate, planned_update
from megatron_atesd.plan.published import QWEN3
from tests.support.patience import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
RECIPE = str(ROOT / "examples" / "atesd_qwen3_8b.yaml")
H100, ASSUMED = GPUS["h100"], Assumptions()
AVERAGE_AT_12 = Evaluation(90, 12, 38912, 0.4)


def workload(size: str = "8b", gpus: int = 8) -> PlannedUpdate:
    config = load_config(["--config", RECIPE, "--engine.batch=0", "--parallel.tensor=1", "--parallel.sequence=false"])
    return planned_update(config, QWEN3[size], gpus, Lengths.of(config))


def steps_of_a_queue(lengths: list[int], rows: int) -> int:
    """When the last response ends, if each takes the place that is free first."""
    places = [0] * rows
    for length in lengths:
        heapq.heappush(places, heapq.heappop(places) + length)
    return max(places)


@pytest.mark.parametrize(("responses", "rows"), [(120, 10), (60, 20), (30, 30), (9, 30)])
def test_steps_are_those_of_a_queue_whose_last_response_is_the_longest(responses: int, rows: int):
    lengths = [400] * (responses - 1) + [1000]
    assert steps(responses, rows, Evaluation(1, 1, 1000, 0.4)) == steps_of_a_queue(lengths, rows)


def test_time_is_a_step_after_the_other_where_kernel_launches_bind():
    """36 layers, one response a copy, greedy and sampled: twice 38,912 steps."""
    plan = plan_evaluation(workload(), "training", replace(AVERAGE_AT_12, problems=8, samples=1), H100, ASSUMED)
    assert (plan.rows, plan.bound) == (1, "kernel launches")
    assert plan.seconds == pytest.approx(2 * 38912 * 36 * ASSUMED.launch)


def test_where_memory_binds_time_is_that_of_reading_weights_each_step_and_the_cache_so_far():
    work = workload()
    asked = Evaluation(8, 1, 1000, 1.0)
    plan = plan_evaluation(work, "vllm", asked, H100, replace(ASSUMED, captured=0.0))
    matrices = stage_parameters(work, 0) - work.arch.vocabulary * work.arch.hidden - work.arch.hidden  # but embedding and last norm
    a_token = 2 * 36 * 8 * 128 * 2  # keys and values of 36 layers, 8 heads of 128, bf16
    read = sum(2 * matrices + a_token * (work.lengths.student + step) for step in range(1000))
    assert plan.bound == "memory"
    assert plan.seconds == pytest.approx(2 * read / (H100.bandwidth * ASSUMED.bandwidth), rel=1e-3)


def test_a_copy_decodes_as_many_at_once_as_fit_beside_the_weights():
    work = workload()
    row = kv_cache_bytes(work, 1, work.lengths.student, round(AVERAGE_AT_12.mean)) + 12 * work.arch.vocabulary
    for engine, copies in (("training", 1), ("vllm", 2)):
        plan = plan_evaluation(work, engine, AVERAGE_AT_12, H100, ASSUMED)
        free = 0.95 * H100.memory - ASSUMED.overhead - copies * 2 * stage_parameters(work, 0)
        assert plan.rows * row <= free < (plan.rows + 1) * row
        assert 1 < plan.rows < 135
        assert plan.memory <= H100.memory


def test_engine_batch_bounds_what_is_decoded_at_once():
    plan = plan_evaluation(replace(workload(), rollout_batch=5), "training", AVERAGE_AT_12, H100, ASSUMED)
    assert plan.rows == 5


def test_what_does_not_fit_is_said_and_the_layouts_that_do_are_there():
    plans = plan_evaluations(workload("32b"), AVERAGE_AT_12, H100, ASSUMED)
    assert {(plan.engine, plan.tensor): plan.rows > 0 for plan in plans} == {
        **{("training", tensor): True for tensor in (1, 2, 4, 8)},
        **{("vllm", tensor): tensor > 1 for tensor in (1, 2, 4, 8)},
    }


def command(*flags: str) -> subprocess.CompletedProcess[str]:
    line = [
        sys.executable,
        str(ROOT / "tools" / "plan.py"),
        "--config",
        RECIPE,
        "--gpus",
        "8",
        "--gpu",
        "h100",
        "--model-shape",
        "8b",
        *flags,
    ]
    return subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE)


def test_the_command_plans_an_evaluation_and_says_what_it_assumes(tmp_path: Path):
    done = command("--evaluate", "90x12", "--evaluate-share", "0.5", "--engine.batch", "0", "--json", str(tmp_path / "plan.json"))
    assert done.returncode == 0
    assert "evaluation: 90 problems, 12 samples and a greedy response each" in done.stdout
    assert "a response has 19,456 tokens on average (50% of 38,912)" in done.stdout
    written = json.loads((tmp_path / "plan.json").read_text())["evaluation"]
    config = load_config(["--config", RECIPE, "--engine.batch=0"])
    plans = plan_evaluations(planned_update(config, QWEN3["8b"], 8, Lengths.of(config)), Evaluation(90, 12, 38912, 0.5), H100, ASSUMED)
    assert [plan["seconds"] for plan in written["plans"]] == [plan.seconds for plan in plans]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--evaluate", "90"], "--evaluate is 90, must be problems x samples, such as 90x12"),
        (["--evaluate", "0x12"], "--evaluate is 0x12, must be problems x samples, such as 90x12"),
        (["--evaluate", "1x1", "--evaluate-tokens", "0"], "--evaluate-tokens is 0, must be 1 or more"),
        (["--evaluate", "1x1", "--evaluate-share", "nan"], "--evaluate-share is nan, must be greater than 0 and at most 1"),
        (["--evaluate", "1x1", "--evaluate-tokens", "40960"], "--evaluate-tokens is 40960, must be below the model's 40960 positions"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(flags: list[str], says: str):
    done = command(*flags)
    assert (done.returncode, done.stderr) == (2, f"error: {says}\n")
