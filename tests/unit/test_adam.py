"""Adam's state passes between torch's Adam and a fused one, and is there before the first step.

The fused ones of Transformer Engine and Apex run on GPUs only. `FusedAdam` here keeps its state as theirs do: the count of steps as an int
in each group, moments of these two names and nothing else beside a parameter, a setting of its own in each group. Transformer Engine 2.20's
own loaded and saved such states as well, without a GPU; only its step needs one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.optimizer import clip_grads
from megatron.core.utils import local_multi_tensor_scale

from megatron_atesd.checkpoint.reading import write_folder
from megatron_atesd.parallel.session import parallel_session
from tests.support.distill_case import save_models
from tests.support.student_session import Session, assert_close, session

LAYOUTS = {"plain": ("fp32", False), "plain-bf16": ("bf16", False), "distributed": ("fp32", True)}


class FusedAdam(torch.optim.Optimizer):
    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        adam_w_mode: bool,
        capturable: bool = False,  # asked for from megatron.core 0.17 on
    ) -> None:
        assert adam_w_mode
        assert not capturable
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "bias_correction": True})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert all(moments.keys() == {"exp_avg", "exp_avg_sq"} for moments in state_dict["state"].values())
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            group["step"] = group["step"] + 1 if "step" in group else 1
            assert isinstance(group["step"], int)
            assert group["bias_correction"]
            first, second = group["betas"]
            for parameter in group["params"]:
                moments = self.state[parameter]
                if not moments:
                    moments |= {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                moments["exp_avg"].lerp_(parameter.grad, 1 - first)
                moments["exp_avg_sq"].lerp_(parameter.grad**2, 1 - second)
                spread = (moments["exp_avg_sq"] / (1 - second ** group["step"])).sqrt() + group["eps"]
                parameter.sub_(group["lr"] * moments["exp_avg"] / (1 - first ** group["step"]) / spread)


@contextmanager
def installed(fused: bool) -> Iterator[None]:
    """megatron.core as it finds things with Transformer Engine, or without."""
    with pytest.MonkeyPatch.context() as patch:
        if fused:
            module = "megatron.core.optimizer"
            patch.setattr(f"{module}.Adam", FusedAdam)
            patch.setattr(f"{module}.USING_PYTORCH_OPTIMIZER", False)
            patch.setattr(f"{module}.distrib_optimizer.Adam", FusedAdam)
            patch.setattr(f"{module}.distrib_optimizer.HAVE_APEX_OR_TE", True)
            patch.setattr(f"{module}.distrib_optimizer.USING_TE_OPTIMIZER", True)
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_models(folder, "qwen3", tied=True)
    return folder


def build(models: Path, layout: str) -> Session:
    dtype, distributed = LAYOUTS[layout]
    return session(models, dtype=dtype, kind="initial", distributed=distributed)


@pytest.mark.parametrize("fused", [False, True], ids=["torch-to-fused", "fused-to-torch"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_of_one_goes_on_with_the_other(fused: bool, layout: str, models: Path, tmp_path: Path) -> None:
    with parallel_session():
        unbroken = build(models, layout)
        unbroken.train(4)
        with installed(fused):
            writer = build(models, layout)
            writer.train(2)
            write_folder(tmp_path / "after_two", writer.state(loading=False), models / "student")
        with installed(not fused):
            reader = build(models, layout)
            reader.load(tmp_path / "after_two")
            reader.train(2)
        assert_close(reader.weights(), unbroken.weights(), 1e-2 if layout == "plain-bf16" else 1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_from_before_the_first_step_goes_on(layout: str, models: Path, tmp_path: Path) -> None:
    """As a run leaves it that ends because every update was skipped."""
    with parallel_session():
        writer, reader = build(models, layout), build(models, layout)
        write_folder(tmp_path / "fresh", writer.state(loading=False), models / "student")
        reader.load(tmp_path / "fresh")
        writer.train(2)
        reader.train(2)
        assert_close(reader.weights(), writer.weights(), 1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_adam_is_fused_on_a_cpu_also_after_a_checkpoint_of_one_that_was_not(layout: str, models: Path, tmp_path: Path) -> None:
    with parallel_session():
        unbroken, writer, reader = (build(models, layout) for _ in range(3))
        for group in groups_of(writer):
            group["fused"] = None
        unbroken.train(4)
        writer.train(2)
        write_folder(tmp_path / "not_fused", writer.state(loading=False), models / "student")
        reader.load(tmp_path / "not_fused")
        assert [group["fused"] for group in groups_of(reader)] == [True] * len(groups_of(unbroken))
        reader.train(2)
        assert_close(reader.weights(), unbroken.weights(), 1e-2 if layout == "plain-bf16" else 1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_resumed_fused_adam_goes_on_bit_for_bit(layout: str, models: Path, tmp_path: Path) -> None:
    with parallel_session():
        unbroken, reader = build(models, layout), build(models, layout)
        unbroken.train(2)
        write_folder(tmp_path / "after_two", unbroken.state(loading=False), models / "student")
        reader.load(tmp_path / "after_two")
        unbroken.train(2)
        reader.train(2)
        assert_close(reader.weights(), unbroken.weights(), 0.0)


def groups_of(session: Session) -> list[dict[str, Any]]:
    """Of torch's Adam."""
    return session.optimization.part.optimizer.param_groups


def test_clipped_gradients_are_megatron_cores_bit_for_bit() -> None:
    gradients = [torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in ((7, 5), (130,))]
    expected = [gradient.clone() for gradient in gradients]
    local_multi_tensor_scale(0, None, [expected, expected], 0.3)
    with parallel_session():
        clip_grads.multi_tensor_scale_impl(0, torch.zeros(1), [gradients, gradients], 0.3)
    assert_close(gradients, expected, 0.0)
