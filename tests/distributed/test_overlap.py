"""Gradients reduced during the backward and weights gathered during the next forward: the same training as without, at several layouts."""

from dataclasses import astuple, dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.config import ScheduleConfig
from megatron_atesd.distill.likelihood import mean_nll
from megatron_atesd.distill.step import distill_step
from megatron_atesd.distill.teacher import Teacher
from megatron_atesd.model.gpt import build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.parallel.groups import data_parallel_place
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.train.optimizer import build_optimization
from tests.support.distill_case import DIVERGENCE, examples, save_models
from tests.support.launch import run_distributed
from tests.support.student_session import Kind, Session, assert_close

pytestmark = pytest.mark.slow

# Buckets of about a layer.
REDUCE = {"overlap_grad_reduce": True, "bucket_size": 3000}
GATHER = {**REDUCE, "overlap_param_gather": True}


@dataclass(frozen=True)
class Case:
    """A layout on four ranks, whose other ranks are data-parallel."""

    tensor: int
    pipeline: int
    virtual: int
    tied: bool
    kind: Kind


CASES = {
    "tensor": Case(2, 1, 1, False, "initial"),
    "interleaved": Case(1, 2, 2, True, "live"),
    "data": Case(1, 1, 1, False, "ema"),
}


@dataclass(frozen=True)
class Trained:
    """What two updates gave on one rank: metrics of each update, final weights of student and teacher."""

    metrics: list[tuple[float, ...]]
    weights: list[torch.Tensor]
    late: int  # tensors that were not yet whole after the last step, and were so after the probe that followed


def session(folder: Path, case: Case, ddp: dict[str, object]) -> Session:
    architecture = read_architecture(folder / str(case.tied) / "student")
    config = transformer_config(architecture, case.tensor, case.pipeline, False, "fp32", virtual_pipeline=case.virtual)
    model = build_model(architecture, config)
    load_hf_weights(model, folder / str(case.tied) / "teacher")
    teacher = Teacher(model, case.kind, ema_decay=0.9)
    load_hf_weights(model, folder / str(case.tied) / "student")
    settings = {"lr": 1e-2, "clip_grad": 1.0, "use_distributed_optimizer": True}
    return Session(model, teacher, build_optimization(model, settings, ddp, ScheduleConfig(), 10))


def train(folder: Path, case: Case, ddp: dict[str, object]) -> Trained:
    """Updates as the training loop makes them, with a probe after each."""
    run = session(folder, case, ddp)
    rank, size = data_parallel_place()
    pairs = [(example.student_prompt, example.response) for example in examples(37)]
    metrics, late = [], 0
    for _ in range(2):
        run.optimization.zero_grad()
        mine = examples(37)[rank::size]
        result = distill_step(run.optimization.wrapped, run.model, run.teacher, mine, DIVERGENCE, micro_batch_tokens=20)
        norm, _ = run.optimization.step()
        stepped = run.weights()
        if run.teacher.kind == "ema":
            run.optimization.weights_ready()
        run.teacher.update()
        nll = mean_nll(run.model, pairs, micro_batch_tokens=20)
        metrics.append((*astuple(result)[:6], norm, nll))
        late = sum(not torch.equal(a, b.data) for a, b in zip(stepped, run.model.parameters(), strict=False))
    return Trained(metrics, run.weights(), late)


def train_all(folder: Path) -> dict[str, list[Trained]]:
    """By case: without overlap, with that of the gradients, with both."""
    dist.init_process_group("gloo")
    results = {}
    for name, case in CASES.items():
        with parallel_session(case.tensor, case.pipeline, virtual_pipeline=case.virtual):
            results[name] = [train(folder, case, ddp) for ddp in ({}, REDUCE, GATHER)]
    return results


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Trained]]]:
    folder = tmp_path_factory.mktemp("models")
    for tied in (False, True):
        save_models(folder / str(tied), "qwen3", tied)
    return run_distributed(train_all, 4, folder)


@pytest.mark.parametrize("overlap", [1, 2], ids=["reduce", "gather"])
@pytest.mark.parametrize("case", CASES)
def test_metrics_are_those_without_overlap(case: str, overlap: int, trained: list[dict[str, list[Trained]]]) -> None:
    """Loss, KL, entropies, gradient norm and the probe, of every update."""
    for rank in trained:
        torch.testing.assert_close(torch.tensor(rank[case][overlap].metrics), torch.tensor(rank[case][0].metrics), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("overlap", [1, 2], ids=["reduce", "gather"])
@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_without_overlap(case: str, overlap: int, trained: list[dict[str, list[Trained]]]) -> None:
    for rank in trained:
        assert_close(rank[case][overlap].weights, rank[case][0].weights, 1e-5)


@pytest.mark.parametrize("case", CASES)
def test_only_the_gather_is_left_to_the_next_pass(case: str, trained: list[dict[str, list[Trained]]]) -> None:
    """Otherwise nothing would have been overlapped."""
    assert [sum(rank[case][overlap].late for rank in trained) > 0 for overlap in (0, 1, 2)] == [False, False, True]
