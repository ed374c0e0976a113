"""The benchmark: its contenders do the same work, its counts are right, and it refuses what it cannot use."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import parts, watch
from benchmarks.dense import dense_loss
from benchmarks.flops import step_flops
from benchmarks.measurement import Measurement
from benchmarks.process import MeasurementError
from benchmarks.settings import Settings
from benchmarks.watch import PeakMemory, Stopwatch
from benchmarks.workload import Workload, load_workloads
from megatron_atesd.distill.divergence import ClipMode, Divergence
from megatron_atesd.distill.fused import distill_loss
from megatron_atesd.errors import ConfigError
from tests.support.imports import imports_of, is_ours

ROOT = Path(__file__).resolve().parents[2]
WORKLOADS = ROOT / "tools" / "benchmarks" / "workloads.json"
TINY = Workload("tiny", 1, 2, 1, 1, 3, 5, 7, True, prompts=1, prompt_tokens=2, reference_tokens=3, response_tokens=4)


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "tools" / "bench_distill.py"), *arguments], capture_output=True, text=True, cwd=ROOT)


def test_flops_equal_a_count_by_hand() -> None:
    # Weights of the layer: 2·3 each for q, k, v and o, 3·2·5 for the MLP: 54. Attention: 2 products of 2·3 operations a pair.
    teacher = 2 * 9 * 54 + 45 * 12  # 9 tokens, 45 causal pairs
    student = 2 * 6 * 54 + 21 * 12  # 6 tokens, 21 causal pairs
    head = 2 * 4 * 2 * 7  # 4 response tokens
    assert step_flops(TINY) == teacher + 3 * student + 4 * head == 4660


@pytest.mark.parametrize(("clip", "clip_mode"), [(0.0, "entry"), (0.8, "entry"), (1.2, "token")])
def test_the_dense_loss_equals_distill_loss(clip: float, clip_mode: ClipMode) -> None:
    torch.manual_seed(0)
    values = [torch.randn(rows, 5, dtype=torch.float64) for rows in (11, 17, 11, 17)]
    settings, weight_T = Divergence(clip=clip, temperature=1.3, chunk=4, clip_mode=clip_mode), torch.linspace(0.1, 1, 11)
    found = []
    for function in (dense_loss, distill_loss):
        hidden, head = (value.float().requires_grad_() for value in values[:2])
        loss, statistics = function(hidden, head, values[2].float(), values[3].float(), weight_T, settings)
        loss.backward()
        found.append((loss, hidden.grad, head.grad, vars(statistics)))
        assert (0 < float(statistics.clipped_T.sum()) < 11) == (clip > 0)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def loss_rows(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, list[float]], said: list[str]) -> dict[str, dict[str, Any]]:
    """Rows of the loss part, by method, when its processes give these seconds, one a repeat; a method without any has failed."""

    def measured(task: Measurement, _: str) -> dict[str, Any]:
        if not seconds.get(task.contender):
            raise MeasurementError(f"{task.name}: no memory")
        return {"seconds": [seconds[task.contender].pop(0)], "peak_gib": 1.0, "over_start_gib": 0.5}

    monkeypatch.setattr(parts, "measured", measured)
    monkeypatch.setattr(parts, "matmul_peak", lambda *_: 1e9)
    rows = parts.loss_part([TINY], Settings(dtypes=("fp32",), tokens=(10,), repeats=3), said.append)
    return {row["method"]: row for row in rows}


def test_figures_are_medians_over_the_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = loss_rows(monkeypatch, {"fused": [3.0, 9.0, 2.0], "dense": [4.0, 4.0, 4.0], "products": [2.0, 2.0, 1.0]}, [])
    assert (rows["fused"]["seconds"], rows["fused"]["ratio_seconds"]) == (3.0, 1.5)
    assert rows["dense"]["share_of_peak"] == pytest.approx(4 * 2 * 10 * 2 * 7 / 4.0 / 1e9)


def test_a_steps_ratios_are_to_the_baselines_training_time_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The median of the steps' sums of teacher, student and loss; the optimizer is not training."""
    results = {
        "plain": {"steps": [step(1.0, 2.0, 1.0), step(2.0, 2.0, 2.0), step(1.0, 9.0, 2.0)], "peak_gib": 9.0, "over_start_gib": 4.0},
        "ours": {"steps": [step(1.0, 1.0, 1.0)] * 3, "peak_gib": 3.0, "over_start_gib": 1.0},
    }
    monkeypatch.setattr(parts, "measured", lambda task, _: results[task.contender] | {"loss": 0.5, "grad_norm": 0.25})
    monkeypatch.setattr(parts, "matmul_peak", lambda *_: 1e9)
    rows = {
        row["contender"]: row for row in parts.step_part([TINY], Settings(dtypes=("fp32",), contenders=("ours", "plain")), lambda _: None)
    }
    assert (rows["plain"]["training_seconds"], rows["ours"]["training_seconds"]) == (6.0, 3.0)
    assert (rows["ours"]["ratio_seconds_plain"], rows["ours"]["ratio_memory_plain"]) == (0.5, 0.25)
    assert rows["ours"]["tokens_per_second"] == pytest.approx(4 / 3.0)  # one prompt of four response tokens
    assert rows["ours"]["share_of_peak"] == pytest.approx(4660 / 3.0 / 1e9)


def step(teacher: float, student: float, loss: float) -> dict[str, float]:
    return {"teacher": teacher, "student": student, "loss": loss, "optimizer": 100.0}


def test_a_peer_that_fails_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    rows = loss_rows(monkeypatch, {"fused": [1.0] * 3, "dense": [], "products": [1.0] * 3}, said)
    assert set(rows) == {"fused", "products"}
    assert "tiny fp32 dense T=10: no memory; left out" in said


def test_a_failure_of_this_project_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MeasurementError, match="tiny fp32 fused"):
        loss_rows(monkeypatch, {"fused": [], "dense": [1.0] * 3, "products": [1.0] * 3}, [])


class Lasting(torch.autograd.Function):
    """The identity, whose backward takes so many ticks of the fake clock."""

    clock = 0.0

    @staticmethod
    def forward(ctx: Any, value: Tensor, ticks: float) -> Tensor:
        ctx.ticks = ticks
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        Lasting.clock += ctx.ticks
        return gradient, None


def test_the_backward_of_the_loss_is_told_from_that_of_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "now", lambda: Lasting.clock)
    stopwatch, weights, head = Stopwatch(), torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    hidden = Lasting.apply(weights, 100.0)

    def loss_function(hidden_TH: Tensor) -> tuple[Tensor]:
        return ((Lasting.apply(hidden_TH, 1.0) * Lasting.apply(head, 2.0)).sum(),)

    (loss,) = stopwatch.timed_loss(loss_function)(hidden)
    Lasting.apply(loss, 1000.0).backward()  # what comes before the loss's backward is not its own either
    assert stopwatch.seconds["loss"] == 3.0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets a peak")
def test_peak_memory_is_that_since_the_reset() -> None:
    memory = PeakMemory("cpu")
    block = torch.ones(2**26)
    del block
    assert memory.figures()["over_start_gib"] >= 0.24
    memory.reset()
    assert memory.figures()["over_start_gib"] < 0.05


def test_a_bad_workload_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "sizes.json").write_text(WORKLOADS.read_text().replace('"prompts": 4', '"prompts": 0'))
    ended = bench("--workloads", str(tmp_path / "sizes.json"))
    assert ended.returncode == 2
    assert ended.stderr == f"error: --workloads {tmp_path}/sizes.json: smoke.prompts is 0, must be a whole number of at least 1\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": None}, "lacks layers"),
        ({"size": 3}, "unknown size 'size'"),
        ({"tied": 1}, r"tied is 1, must be true or false"),
        ({"heads": 3}, "heads is 3, must be a multiple of query_groups, 2"),
        ({"micro_batch": 3}, "micro_batch is 3, must divide prompts, 4"),
        ({"vocabulary": 2}, "vocabulary is 2, must be more than 2"),
    ],
)
def test_a_workload_that_cannot_be_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    entry = json.loads(WORKLOADS.read_text())["smoke"] | change
    (tmp_path / "w.json").write_text(json.dumps({"w": {name: value for name, value in entry.items() if value is not None}}))
    with pytest.raises(ConfigError, match=message):
        load_workloads(tmp_path / "w.json")


def test_a_workload_that_the_file_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="--only names 'W3'"):
        load_workloads(WORKLOADS, "W1,W3")


def test_the_trl_runner_needs_nothing_of_this_project() -> None:
    names = imports_of((ROOT / "tools" / "benchmarks" / "trl_step.py").read_text(), "benchmarks")
    assert [name for name in names if is_ours(name) or name.startswith("megatron")] == []
