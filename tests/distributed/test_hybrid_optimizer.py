"""A checkpoint of our optimizer moves into a HybridModel's: moments, fp32 weights and what the next step makes of them, bit for bit."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from megatron_atesd.checkpoint.reading import model_state, read_folder, write_folder
from megatron_atesd.config import ScheduleConfig
from megatron_atesd.model.gpt import build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.model.trained import MODEL_PREFIX
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.train.optimizer import Optimization, build_optimization
from tests.support.distill_case import save_models
from tests.support.launch import run_distributed
from tests.support.student_session import session

pytest.importorskip(
    "megatron.core.dist_checkpointing.gpt_checkpoint_interop",
    reason="megatron-core below 0.19 has no gpt_checkpoint_interop, by which a HybridModel reads checkpoints of a GPTModel",
)
from tests.support.hybrid_model import Hybrid

WRITTEN = {"fp32": ("fp32", True), "bf16": ("bf16", True), "bf16-plain": ("bf16", False)}  # dtype, whether the distributed optimizer
SIZES = {"data": (1, 1), "tensor": (2, 1), "pipeline": (1, 2)}  # TP, PP, of two ranks
CASES = list(product(WRITTEN, SIZES))


class OfGpt:
    """Our model with its optimizer."""

    def __init__(self, folder: Path, sizes: tuple[int, int], dtype: str, distributed: bool) -> None:
        self.arch = read_architecture(folder / "student")
        self.model: Any = self.build(sizes, dtype)
        settings = {"lr": 1e-3, "clip_grad": 1.0, "weight_decay": 0.1, "use_distributed_optimizer": distributed}
        self.optimization: Optimization = build_optimization(self.model, settings, {}, ScheduleConfig(), 10)

    def build(self, sizes: tuple[int, int], dtype: str) -> Any:
        return build_model(self.arch, transformer_config(self.arch, *sizes, False, dtype))

    def state(self, loading: bool = False) -> dict[str, Any]:
        model = model_state(self.model)
        return {"model": model, "optimizer": self.optimization.sharded_state_dict(model, loading)}

    def take(self, weights: dict[str, Any]) -> None:
        self.model.load_state_dict({name.removeprefix(MODEL_PREFIX): value for name, value in weights.items()})

    def load(self, folder: Path) -> None:
        loaded = read_folder(folder, self.state(loading=True))
        self.take(loaded["model"])
        self.optimization.load_state_dict(loaded["optimizer"])

    def step(self) -> None:
        """With the weights themselves for gradients: every moment moves."""
        self.optimization.zero_grad()
        for parameter in self.model.parameters():
            cast("Any", parameter).main_grad.copy_(parameter.detach())
        self.optimization.step()


class OfHybrid(OfGpt):
    """A HybridModel with the same optimizer; its state lies where ours does."""

    def build(self, sizes: tuple[int, int], dtype: str) -> Any:
        config = transformer_config(replace(self.arch, layers=2 * self.arch.layers), *sizes, False, dtype)
        return Hybrid(self.arch, config, [self.arch.layers // sizes[1]] * sizes[1])

    def state(self, loading: bool = False) -> dict[str, Any]:
        model = self.model.model_state()
        return self.model.as_gpt({"model": model, "optimizer": self.optimization.sharded_state_dict(model, loading)})

    def take(self, weights: dict[str, Any]) -> None:
        self.model.take(weights)


def write_all(folder: Path) -> None:
    """For each case: what each model saves at once after loading step_2, and what after one more update."""
    dist.init_process_group("gloo")
    for written, (dtype, distributed) in WRITTEN.items():
        with parallel_session():
            trained = session(folder, dtype=dtype, distributed=distributed)
            trained.train(2)
            write_folder(folder / written, trained.state(loading=False), folder / "student")
        for name, sizes in SIZES.items():
            for kind in (OfGpt, OfHybrid):
                with parallel_session(*sizes, seed=9):
                    mine = kind(folder, sizes, dtype, distributed)
                    mine.load(folder / written)
                    write_folder(folder / f"{written}-{name}-{kind.__name__}-loaded", mine.state(), folder / "student")
                    mine.step()
                    write_folder(folder / f"{written}-{name}-{kind.__name__}-after", mine.state(), folder / "student")


def tensors(checkpoint: Path, scratch: Path) -> dict[str, Tensor]:
    """Of the student and its optimizer."""
    dcp_to_torch_save(checkpoint / "weights", scratch)
    whole = torch.load(scratch, weights_only=True)
    return {name: value for name, value in whole.items() if isinstance(value, Tensor) and not name.startswith("teacher.")}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hybrid")
    # TP need not pad this vocabulary, which would be saved with its padding.
    save_models(folder, "qwen3", tied=True, vocabulary=40)
    run_distributed(write_all, 2, folder)
    return folder


@pytest.mark.parametrize(("written", "name"), CASES)
def test_moments_and_fp32_weights_are_those_of_the_checkpoint(written: str, name: str, folder: Path, tmp_path: Path) -> None:
    """What the HybridModel saves again is all that the checkpoint holds."""
    source, again = (tensors(folder / one, tmp_path / "all.pt") for one in (written, f"{written}-{name}-OfHybrid-loaded"))
    assert {key.split(".")[2] for key in source if key.startswith("optimizer.")} >= {"exp_avg", "exp_avg_sq"}
    assert differing(source, again) == []


@pytest.mark.parametrize(("written", "name"), CASES)
def test_the_next_update_is_that_of_our_model(written: str, name: str, folder: Path, tmp_path: Path) -> None:
    """Its count of steps and its groups of parameters came along, too."""
    ours, hybrid = (tensors(folder / f"{written}-{name}-{kind}-after", tmp_path / "all.pt") for kind in ("OfGpt", "OfHybrid"))
    assert len(differing(ours, tensors(folder / written, tmp_path / "all.pt"))) == len(ours)
    assert differing(ours, hybrid) == []
