"""Transformer Engine's attention against SDPA, and each FP8 recipe against bf16, through a whole update; only on a GPU that has them."""

from pathlib import Path

import pytest

from megatron_atesd.config_load import load_config
from megatron_atesd.faults.state import metrics
from megatron_atesd.train.loop import train
from tests.end_to_end.small_run import arguments, save_inputs
from tests.gpu.gpu_models import layers, need

pytestmark = pytest.mark.gpu

# The oldest compute capability of each recipe: Ada, Hopper, Blackwell.
RECIPES = {"fp8_tensorwise": (8, 9), "fp8_delayed": (8, 9), "fp8_blockwise": (9, 0), "fp8_mxfp8": (10, 0)}


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


@pytest.mark.parametrize(("recipe", "capability"), RECIPES.items())
def test_fp8_is_near_bf16_and_not_the_same(recipe: str, capability: tuple[int, int], inputs: Path, tmp_path: Path) -> None:
    """FP8 keeps 3 bits of a mantissa: each factor is off by up to 6 %, the sums by much less. Equal numbers would mean that it is off."""
    roles = ("student", "teacher")
    need(*(f"--precision.{role}={recipe}" for role in roles), capability=capability)
    settings = {value: (*layers("te"), *(f"--precision.{role}={value}" for role in roles)) for value in ("bf16", recipe)}
    bf16, fp8 = (probe_nll(inputs, tmp_path / value, *more) for value, more in settings.items())
    assert fp8 == pytest.approx(bf16, rel=0.05)
    assert fp8 != bf16
