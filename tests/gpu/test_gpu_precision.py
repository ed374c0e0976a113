"""Transformer Engine's attention against SDPA, and each FP8 recipe against bf16, through a whole update; only on a GPU that has them."""

from pathlib import Path

import pytest
import torch

from megatron_atesd.config import Precision, load_config
from megatron_atesd.faults.state import metrics
from megatron_atesd.model.fp8 import FP8, unavailable
from megatron_atesd.train.loop import train
from tests.support.gpu_models import layers, need_transformer_engine
from tests.support.small_run import arguments, save_inputs

pytestmark = pytest.mark.gpu

ROLES = ("student", "teacher", "rollout")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inputs(tmp_path_factory.mktemp("inputs"))


def probe_nll(inputs: Path, run_dir: Path, *settings: str) -> float:
    """NLL of the probe's references after one update in bf16 with these settings."""
    train(load_config(arguments(inputs, run_dir, "--run.updates=1", "--parallel.tensor=1", "--model.dtype=bf16", *settings)))
    return metrics(run_dir)[0]["probe/nll"]


def test_transformer_engine_gives_what_sdpa_gives(inputs: Path, tmp_path: Path) -> None:
    """Both in bf16; a mean over hundreds of tokens averages most of the rounding out."""
    te, sdpa = (probe_nll(inputs, tmp_path / kind, *layers(kind)) for kind in ("te", "sdpa"))
    assert te == pytest.approx(sdpa, rel=1e-2)


@pytest.mark.parametrize("recipe", FP8)
def test_fp8_is_near_bf16_and_not_the_same(recipe: Precision, inputs: Path, tmp_path: Path) -> None:
    """FP8 keeps 3 bits of a mantissa: each factor is off by up to 6 %, the sums by much less. Equal numbers would mean that it is off.

    Rollouts are in FP8 as well. The delayed recipe's history is in the checkpoint.
    """
    need_transformer_engine()
    if reason := unavailable(recipe):
        pytest.skip(reason)
    settings = {value: (*layers("te"), *(f"--precision.{role}={value}" for role in ROLES)) for value in ("bf16", recipe)}
    bf16, fp8 = (probe_nll(inputs, tmp_path / value, *more) for value, more in settings.items())
    assert fp8 == pytest.approx(bf16, rel=0.05)
    assert fp8 != bf16
    saved = torch.load(tmp_path / recipe / "checkpoints" / "step_1" / "weights" / "common.pt")["run"]["scaling_history"]
    assert bool(saved) is (recipe == "fp8_delayed")
