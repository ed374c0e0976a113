"""On a GPU a step gives the CPU's loss and gradients, a job trains, and its checkpoints load bit for bit."""

import math
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.checkpoint.reading import write_folder
from megatron_atesd.config import ScheduleConfig, load_config
from megatron_atesd.distill.divergence import Divergence
from megatron_atesd.distill.readings import Example
from megatron_atesd.distill.step import distill_step
from megatron_atesd.distill.teacher import Teacher
from megatron_atesd.faults.state import checkpoint_state, differences, metrics
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.train.checks import check_before_work
from megatron_atesd.train.loop import train
from megatron_atesd.train.optimizer import build_optimization
from megatron_atesd.train.training_run import TrainingRun
from tests.support.gpu_models import built, error, layers, save_model
from tests.support.small_run import arguments, save_inputs

pytestmark = pytest.mark.gpu
Found = tuple[float, dict[str, Tensor]]

ALL_AT_ONCE = (
    "--model.dtype=bf16",
    "--distill.teacher_offload=true",
    "--optimizer.use_distributed_optimizer=true",
    "--checkpoint.background=true",
)


def loss_and_gradients(folder: Path, dtype: str) -> Found:
    """Of a step over ragged examples in several micro-batches, on the device of this process; gradients by parameter, on the CPU."""
    random = torch.Generator().manual_seed(7)
    prompts, references, responses = (torch.randint(2003, (6, length), generator=random).tolist() for length in (20, 30, 50))
    asked = zip(prompts, references, responses, range(6), strict=True)
    examples = [Example(p[i:], [*p[i:], *reference], response[: 50 - 7 * i]) for p, reference, response, i in asked]
    with parallel_session():
        model = built(folder / "teacher", f"--model.dtype={dtype}", *layers("sdpa"))
        teacher = Teacher(model, "initial")
        load_hf_weights(model, folder / "student")
        optimization = build_optimization(model, {}, {}, ScheduleConfig(), 10)
        optimization.zero_grad()
        result = distill_step(optimization.wrapped, model, teacher, examples, Divergence(clip=0.5, temperature=1.1, chunk=64), 256)
        named = model.named_parameters()
        return result.loss, {name: p.main_grad.cpu().clone() for name, p in named}  # pyright: ignore[reportAttributeAccessIssue]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for role in ("student", "teacher"):
        save_model(folder / role, num_hidden_layers=3, tie_word_embeddings=False)
    perturb(folder / "student")
    return folder


def perturb(folder: Path) -> None:
    """Weights that differ from the teacher's, which began with the same seed."""
    from transformers import Qwen3ForCausalLM

    model = Qwen3ForCausalLM.from_pretrained(folder)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def on_cpu(folder: Path) -> dict[str, Found]:
    """By dtype, from a process that sees no GPU: hidden before it starts, for imports may ask for one."""
    with patch.dict(os.environ, CUDA_VISIBLE_DEVICES=""), ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return dict(zip(("fp32", "bf16"), pool.map(loss_and_gradients, [folder] * 2, ("fp32", "bf16")), strict=True))


def test_fp32_loss_and_gradients_are_those_of_a_cpu(folder: Path, on_cpu: dict[str, Found]) -> None:
    """Both sum in fp32, in another order: some 1e-7 an operation, over hundreds of them."""
    loss, gradients = loss_and_gradients(folder, "fp32")
    expected, of_cpu = on_cpu["fp32"]
    assert expected > 0.1  # the roles differ
    assert loss == pytest.approx(expected, rel=1e-5)
    assert {name: error(gradients[name], of_cpu[name]) for name in of_cpu if error(gradients[name], of_cpu[name]) >= 1e-4} == {}


def test_bf16_gradients_are_as_exact_as_those_of_a_cpu(folder: Path, on_cpu: dict[str, Found]) -> None:
    _, gradients = loss_and_gradients(folder, "bf16")
    (_, exact), (_, of_cpu) = on_cpu["fp32"], on_cpu["bf16"]
    errors = {name: (error(gradients[name], exact[name]), error(of_cpu[name], exact[name])) for name in exact}
    assert {name: pair for name, pair in errors.items() if not pair[0] < 1.5 * pair[1] + 0.01} == {}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize("settings", [(), ALL_AT_ONCE], ids=["plain", "all at once"])
def test_a_job_trains_and_its_checkpoint_loads_bit_for_bit(settings: tuple[str, ...], inputs: Path, tmp_path: Path) -> None:
    config = load_config(arguments(inputs, tmp_path / "run", "--run.updates=2", "--parallel.tensor=1", *settings))
    train(config)
    first, second = metrics(tmp_path / "run")
    assert all(math.isfinite(line[name]) for line in (first, second) for name in ("distill/loss", "optim/grad_norm", "probe/nll"))
    assert first["optim/grad_norm"] > 0
    assert first["probe/nll"] != second["probe/nll"]
    saved = tmp_path / "run" / "checkpoints" / "step_2"
    with parallel_session():
        run = TrainingRun(config, check_before_work(config, 1))
        assert run.load(saved) == 2
        write_folder(tmp_path / "again", run.state(2), run.hf_folder)
    assert differences(checkpoint_state(saved), checkpoint_state(tmp_path / "again")) == []


def test_an_offloaded_teacher_and_a_sharded_optimizer_change_nothing(inputs: Path, tmp_path: Path) -> None:
    """In the first update, whose rollouts are the same; sums in another order are all that may differ."""
    for run, more in (("plain", ("--model.dtype=bf16",)), ("all", ALL_AT_ONCE)):
        train(load_config(arguments(inputs, tmp_path / run, "--run.updates=1", "--parallel.tensor=1", *more)))
    plain, everything = (metrics(tmp_path / run)[0] for run in ("plain", "all"))
    for name in ("distill/loss", "optim/grad_norm", "probe/nll"):
        assert everything[name] == pytest.approx(plain[name], rel=1e-3), name
