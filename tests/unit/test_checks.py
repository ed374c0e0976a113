"""What a resumed run may change and what it may not, and what is refused before the work."""

from dataclasses import asdict, replace

import pytest
import torch

from megatron_atesd.config import PrecisionConfig, TrainConfig
from megatron_atesd.errors import CheckpointError, ConfigError
from megatron_atesd.train.checks import check_compiler, check_unchanged

BEGAN = TrainConfig(optimizer={"lr": 1e-5})


@pytest.mark.parametrize(
    ("now", "named"),
    [
        (replace(BEGAN, optimizer={"lr": 2e-5}), "optimizer.lr is 2e-05, but the run began with 1e-05"),
        (replace(BEGAN, optimizer={}), "optimizer.lr is None"),
        (replace(BEGAN, distill=replace(BEGAN.distill, teacher="live")), "distill.teacher is live, but the run began with initial"),
        (replace(BEGAN, exposure=replace(BEGAN.exposure, hold=9)), "exposure.hold is 9"),
        (replace(BEGAN, rollout=replace(BEGAN.rollout, temperature=0.5)), "rollout.temperature is 0.5"),
        (replace(BEGAN, precision=PrecisionConfig("fp8_mxfp8")), "precision.student is fp8_mxfp8, but the run began with None"),
    ],
)
def test_the_method_stays(now: TrainConfig, named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        check_unchanged(asdict(BEGAN), asdict(now))


def test_layout_memory_and_monitoring_may_change() -> None:
    now = replace(
        BEGAN,
        parallel=replace(BEGAN.parallel, tensor=2, micro_batch_tokens=100),
        rollout=replace(BEGAN.rollout, batch=4),
        distill=replace(BEGAN.distill, chunk=7),
        checkpoint=replace(BEGAN.checkpoint, every=1),
        monitor=replace(BEGAN.monitor, samples=3),
    )
    check_unchanged(asdict(BEGAN), asdict(now))


def test_a_run_from_before_there_was_a_precision_goes_on_without_fp8() -> None:
    old = {name: section for name, section in asdict(BEGAN).items() if name != "precision"}
    check_unchanged(old, asdict(replace(BEGAN, precision=PrecisionConfig("bf16"))))


def test_more_updates_only_while_the_learning_rate_does_not_depend_on_them() -> None:
    longer = replace(BEGAN, run=replace(BEGAN.run, updates=999))
    check_unchanged(asdict(BEGAN), asdict(longer))
    decayed = [replace(c, schedule=replace(c.schedule, decay="cosine")) for c in (BEGAN, longer)]
    with pytest.raises(CheckpointError, match=r"run\.updates is 999, but the run began with 100"):
        check_unchanged(asdict(decayed[0]), asdict(decayed[1]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA triton compiles")
def test_compile_without_a_compiler_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    check_compiler(wanted=False)
    with pytest.raises(ConfigError, match=r"distill\.compile is true, but there is no C\+\+ compiler"):
        check_compiler(wanted=True)
