"""The benchmark's step with adapters: PEFT's loss and gradient norm, counts by hand, and what is measured against what."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from benchmarks import parts
from benchmarks.flops import step_flops
from benchmarks.loss_part import loss_part
from benchmarks.measurement import Measurement
from benchmarks.plain import load, micro_batch
from benchmarks.settings import Settings
from benchmarks.watch import Stopwatch
from benchmarks.worker import measure_step
from benchmarks.workload import Workload, draw_ids, load_workloads, save_adapters, save_model
from megatron_atesd.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SMOKE = load_workloads(ROOT / "tools" / "benchmarks" / "workloads.json", "smoke")[0]
TINY = Workload("tiny", 1, 2, 1, 1, 3, 5, 7, True, prompts=1, prompt_tokens=2, reference_tokens=3, response_tokens=4)
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def task(folder: Path, **more: Any) -> Measurement:
    save_model(SMOKE, folder, 1)
    save_adapters(SMOKE, 8, folder / "adapters.start", 1)
    lora = {"lora_rank": 8, "lora_alpha": 16.0, "adapters": str(folder / "adapters.start")}
    return Measurement("ours-lora", SMOKE, "fp32", "cpu", 1, 1, 1, 16, str(folder), ids=draw_ids(SMOKE, 1), **lora, **more)


def with_peft(job: Measurement) -> tuple[float, float]:
    """First loss, and norm of the adapters' gradient, of PEFT's layers on the Hugging Face model, from the same A."""
    teacher = load(job).requires_grad_(False)
    adapted = get_peft_model(load(job), LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS))
    named = dict(adapted.named_parameters())
    for name, value in load_file(job.adapters).items():
        named[f"base_model.model.{name.removesuffix('.weight')}.default.weight"].data.copy_(value)
    loss = micro_batch(adapted.base_model.model, teacher, job, 0, Stopwatch())
    gradients = [parameter.grad for parameter in named.values() if parameter.requires_grad and parameter.grad is not None]
    return loss, float(torch.cat([gradient.flatten() for gradient in gradients]).norm())


def test_the_first_step_is_pefts(tmp_path: Path) -> None:
    job = task(tmp_path)
    loss, norm = with_peft(job)
    assert norm > 0.01
    found = measure_step(job)
    assert (found["loss"], found["grad_norm"]) == pytest.approx((loss, norm), rel=1e-4)


def test_flops_of_a_step_with_adapters_equal_a_count_by_hand() -> None:
    """As test_bench_distill.py counts them; of the layer's 54 weights the student's backward has one product instead of two."""
    teacher, attention = 2 * 9 * 54 + 45 * 12, 21 * 12
    adapters = 2 * 6 * 4 * (4 * (2 + 3) + 3 * (2 + 5))  # rank 4, inputs and outputs of seven projections
    head = 2 * 4 * 2 * 7
    assert step_flops(TINY, 4) == teacher + 2 * (2 * 6 * 54) + 3 * attention + 3 * adapters + 3 * head
    assert step_flops(TINY, 4, ["down_proj"]) == step_flops(TINY, 4) - 3 * 2 * 6 * 4 * (4 * 5 + 2 * 7)


def test_a_frozen_heads_loss_part_makes_no_gradient_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    products: list[tuple[int, ...]] = []
    mm = torch.mm

    def counted(*operands: Any, **options: Any) -> Any:
        products.append(tuple(options["out"].shape))
        return mm(*operands, **options)

    monkeypatch.setattr(torch, "mm", counted)
    of_four, of_three = (replace(task(tmp_path), contender=name, tokens=32) for name in ("products", "products-frozen"))
    loss_part(of_four)()
    assert products == [(16, 512), (16, 512), (16, 64), (512, 64)] * 2
    products.clear()
    loss_part(of_three)()
    assert products == [(16, 512), (16, 512), (16, 64)] * 2


def test_the_loss_part_of_lora_is_a_frozen_head_over_one_that_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"fused": 4.0, "fused-frozen": 3.0, "products": 2.0, "products-frozen": 1.5}
    monkeypatch.setattr(parts, "measured", lambda job, _: {"seconds": [seconds[job.contender]], "peak_gib": 1.0, "over_start_gib": 0.5})
    monkeypatch.setattr(parts, "matmul_peak", lambda *_: 1e9)
    rows = {row["method"]: row for row in parts.loss_part([TINY], Settings(dtypes=("fp32",), tokens=(10,), lora=True), lambda _: None)}
    assert {name: row["ratio_seconds"] for name, row in rows.items()} == {name: value / 4 for name, value in seconds.items()}
    assert rows["fused-frozen"]["flops"] == 3 / 4 * rows["fused"]["flops"]


def test_ratios_of_a_step_are_to_each_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    training = {"ours-lora": 1.0, "ours": 2.0, "trl-lora": 4.0}

    def measured(job: Measurement, _: str) -> dict[str, Any]:
        step = {"teacher": 0.0, "student": training[job.contender], "loss": 0.0, "optimizer": 1.0}
        return {"steps": [step], "peak_gib": 9.0, "over_start_gib": 8 * training[job.contender], "loss": 0.5, "grad_norm": 0.25}

    monkeypatch.setattr(parts, "measured", measured)
    monkeypatch.setattr(parts, "matmul_peak", lambda *_: 1e9)
    monkeypatch.setattr(parts, "trl_is_there", lambda _, __, lora: lora)
    settings = Settings(dtypes=("fp32",), contenders=tuple(training), baselines=("ours", "trl-lora"))
    rows = {row["contender"]: row for row in parts.step_part([TINY], settings, lambda _: None)}
    lora = rows["ours-lora"]
    assert [lora[f"ratio_{what}_{baseline}"] for baseline in settings.baselines for what in ("seconds", "memory")] == [0.5, 0.5, 0.25, 0.25]
    assert (rows["ours"]["flops"], lora["flops"]) == (step_flops(TINY), step_flops(TINY, 64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_rank": 0}, "--lora-rank is 0, must be 1 or more"),
        ({"lora_alpha": 0.0}, "--lora-alpha is 0.0, must be greater than 0"),
        ({"baselines": ("plain", "ours-lora")}, "--baseline names 'ours-lora', which is not measured"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings(**changes).check()
