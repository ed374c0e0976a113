"""What tools/bench_gpu.py makes of its measurements, what it refuses, and its whole path on a CPU, where the figures mean nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.flops import step_flops
from benchmarks.measure_updates import run
from benchmarks.targets import figures, verdict
from benchmarks.update import Measured, Updates, _loss_contenders, build, measure_rank, one_update
from benchmarks.variants import variants
from megatron_atesd.errors import ConfigError
from megatron_atesd.parallel.session import session_of
from megatron_atesd.plan.hardware import GPUS, sxm_board

ROOT = Path(__file__).resolve().parents[2]
TOKENS = {"student": 16, "teacher": 40}
LAYOUT = ["--parallel.tensor=2", "--data.batch=8", "--rollout.max_new_tokens=8"]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "tools" / "bench_gpu.py"), *arguments], capture_output=True, text=True, cwd=ROOT)


def updates(*also: str) -> list[Updates]:
    """Of a job of four processes: two models at TP 2."""
    return variants("tiny", LAYOUT, also, TOKENS, (2, 1), world=4)


def rank(peak: float, **seconds: float) -> dict[str, Any]:
    step = {"rollout": 4.0, "teacher": 1.0, "student": 2.0, "loss": 0.0, "optimizer": 0.5, **seconds}
    return {"steps": [step, step], "loss": 0.1, "over_start_gib": peak, "planned_gib": 2.0}


MEASURED = Measured([rank(1.0), rank(2.1), rank(1.0), rank(1.5, loss=1.0)], {"loss": 2.6, "products": 2.0})


def test_tokens_are_those_of_all_replicas() -> None:
    found = figures(updates()[0], MEASURED, None, 1e12)
    read = {"teacher": 8 * (40 + 8), "student": 8 * (16 + 8)}
    assert found["tokens"] == {name: read.get(name, 8 * 8) for name in ("rollout", "teacher", "student", "loss", "training", "update")}
    assert found["tokens_per_second"]["rollout"] == 64 / 4.0
    assert found["tokens_per_second"]["update"] == 64 / 8.5


def test_utilisation_is_of_a_ranks_share_of_the_operations() -> None:
    """Training is teacher, student and loss of the last rank: four seconds."""
    (one,) = updates()
    assert one.workload.prompts == 4
    found = figures(one, MEASURED, 1e9, 2e9)
    assert found["mfu"] == pytest.approx(step_flops(one.workload) / 2 / 4.0 / 1e9)
    assert found["share_of_matmul"] == pytest.approx(found["mfu"] / 2)


def test_memory_is_the_fullest_ranks_over_its_own_plan() -> None:
    assert figures(updates()[0], MEASURED, None, 1e12)["peak_over_plan"] == pytest.approx(2.1 / 2.0)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("mfu", 0.41, "met"), ("mfu", 0.39, "missed"), ("mfu", None, "not judged"), ("loss_over_products", 1.31, "missed"),
     ("loss_over_products", 1.29, "met"), ("peak_over_plan", 0.89, "missed"), ("peak_over_plan", 1.11, "missed"),
     ("peak_over_plan", 1.0, "met")],
)  # fmt: skip
def test_targets_are_judged(name: str, value: float | None, expected: str) -> None:
    assert verdict(name, value, judged=True) == expected


@pytest.mark.parametrize(
    ("name", "board"),
    [("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-80GB", "a100"), ("NVIDIA B200", "b200"),
     ("NVIDIA H100 PCIe", None), ("NVIDIA H100 NVL", None), ("NVIDIA GH200 480GB", None), ("NVIDIA GeForce RTX 4090", None)],
)  # fmt: skip
def test_a_gpu_is_known_by_the_name_that_cuda_gives_it(name: str, board: str | None) -> None:
    assert sxm_board(name) == (GPUS[board] if board else None)


def test_settings_of_also_come_over_the_others() -> None:
    plain, other = updates("--distill.chunk 64 --distill.teacher=live")
    assert (plain.config.distill.chunk, plain.config.distill.teacher) == (2048, "initial")
    assert (other.config.distill.chunk, other.config.distill.teacher, other.config.data.batch) == (64, "live", 8)


def test_packed_sequences_are_measured_as_such() -> None:
    (one,) = variants("tiny", ["--parallel.packed=true", "--model.dtype=fp32"], (), TOKENS, (1, 0), world=1)
    with session_of(one.config.parallel):
        assert build(one).model.packed


def small(*settings: str) -> Updates:
    """Two updates after one to warm up, on one process."""
    sizes = ("--model.dtype=fp32", "--data.batch=2", "--rollout.max_new_tokens=4")
    (one,) = variants("tiny", [*sizes, *settings], (), TOKENS, (2, 1), world=1)
    return one


def test_the_updates_that_warm_up_are_not_measured() -> None:
    one = small()
    with session_of(one.config.parallel):
        assert len(measure_rank(one)["steps"]) == 2


def test_a_measured_update_moves_student_and_averaged_teacher() -> None:
    one = small("--distill.teacher=ema", "--distill.ema_decay=0.5", "--optimizer.lr=0.01")
    with session_of(one.config.parallel):
        parts = build(one)
        tensors = [*parts.model.parameters(), *parts.teacher.average]
        before = [tensor.detach().clone() for tensor in tensors]
        one_update(one, parts, 0)
        assert [index for index, tensor in enumerate(tensors) if tensor.equal(before[index])] == []


def test_with_lora_a_measured_update_moves_adapters_alone() -> None:
    one = small("--lora.rank=4", "--optimizer.lr=0.01")
    with session_of(one.config.parallel):
        parts = build(one)
        assert parts.teacher.is_base
        before = {name: tensor.detach().clone() for name, tensor in parts.model.named_parameters()}
        one_update(one, parts, 0)
        moved = {name for name, tensor in parts.model.named_parameters() if not tensor.equal(before[name])}
        assert moved == {name for name in before if name.endswith("lora_B.weight")}  # beside which A, while B is zero, has no gradient


def test_with_lora_the_loss_part_is_that_of_a_frozen_head() -> None:
    assert _loss_contenders(small("--lora.rank=4").config) == {"loss": "fused-frozen", "products": "products-frozen"}
    assert _loss_contenders(small("--distill.compile=true").config) == {"loss": "compiled", "products": "products"}


@pytest.mark.parametrize(
    ("shape", "settings", "tokens", "repeats", "message"),
    [
        ("9b", [], TOKENS, (1, 0), "--shape is '9b'"),
        ("tiny", [], TOKENS, (0, 0), "--steps is 0"),
        ("tiny", [], {"student": 16, "teacher": 8}, (1, 0), "--teacher-tokens is 8, must be at least --student-tokens, 16"),
        ("tiny", ["--data.batch=3"], TOKENS, (1, 0), "data.batch is 3"),
        ("tiny", ["--data.batch=4", "--rollout.temperature=0"], TOKENS, (1, 0), "both logits would be divided by 0"),
        ("tiny", ["--parallel.tensor=4"], TOKENS, (1, 0), "must divide the model's query groups"),
        ("tiny", ["--data.batch=4", "--precision.teacher=fp8_delayed"], TOKENS, (1, 0), "but precision.student is null"),
        (
            "tiny",
            ["--data.batch=4", "--precision.rollout=fp8_tensorwise"],
            TOKENS,
            (1, 0),
            "but Transformer Engine or a GPU is missing here",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(
    shape: str, settings: list[str], tokens: dict[str, int], repeats: tuple[int, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        variants(shape, settings, (), tokens, repeats, world=4)


def test_without_a_gpu_it_says_what_can_be_done() -> None:
    with pytest.raises(ConfigError, match="no CUDA device, so there is nothing to measure; to try the path: --device cpu --shape tiny"):
        run("1.7b", [], [], TOKENS, (1, 0), "cuda", None)


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the tiny shape gives on a CPU: the JSON file's content, and what was printed."""
    out = tmp_path_factory.mktemp("bench") / "bench.json"
    sizes = ("--model.dtype=fp32", "--data.batch=4", "--rollout.max_new_tokens=8", "--student-tokens=16", "--teacher-tokens=40")
    quick = ("--device", "cpu", "--shape", "tiny", *sizes, "--steps", "3", "--warmup", "1", "--also", "--distill.teacher ema")
    ended = bench(*quick, "--out", str(out))
    assert ended.returncode == 0, ended.stderr
    return json.loads(out.read_text()) | {"stdout": ended.stdout}


def test_each_variant_is_measured_on_the_same_batch(tried: dict[str, Any]) -> None:
    """Both teachers begin as the student, whose prompt alone is shorter."""
    assert [row["name"] for row in tried["variants"]] == ["tiny", "--distill.teacher ema"]
    first, other = (row["loss"] for row in tried["variants"])
    assert first == other > 0


def test_every_phase_of_an_update_is_timed(tried: dict[str, Any]) -> None:
    """A phase whose stopwatch nobody started has taken no time."""
    for seconds in (row["seconds"] for row in tried["variants"]):
        assert {name for name, value in seconds.items() if value > 0} == {
            "rollout", "teacher", "student", "loss", "optimizer", "training", "update",
        }  # fmt: skip


def test_a_cpu_is_not_judged(tried: dict[str, Any]) -> None:
    assert tried["judged"] is False
    assert [row["mfu"] for row in tried["variants"]] == [None, None]
    assert "met" not in tried["stdout"].split()
