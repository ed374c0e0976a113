"""A launcher trains alike in each of the forms in which it may be started: by torchrun, as Python or not, and by bash."""

import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_atesd.config.yaml import read_settings
from megatron_atesd.faults.state import metrics, reproducible
from megatron_atesd.faults.torchrun import started
from tests.support.small_run import ROOT, finish, recipe_overrides, save_inputs

pytestmark = pytest.mark.slow

LAUNCHER = str(ROOT / "examples" / "atesd_qwen3_8b.sh")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
FORMS = {"torchrun": TORCHRUN, "torchrun --no-python": [*TORCHRUN, "--no-python"], "bash": ["bash"]}


@pytest.fixture(scope="module")
def run_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The run directory of each form: one update at TP=2 with sequence parallelism."""
    inputs = save_inputs(tmp_path_factory.mktemp("inputs"))
    folders = {form: tmp_path_factory.mktemp("run") for form in FORMS}
    for form, run_dir in folders.items():
        output = run_dir / "output"
        command = [*FORMS[form], LAUNCHER, *recipe_overrides(inputs, run_dir, "--run.updates=1")]
        with started(command, output, GPUS_PER_NODE="2") as job:
            finish(job, output)
    return folders


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [reproducible(line) for line in metrics(run_dir)]


@pytest.mark.parametrize("form", FORMS)
def test_each_form_trains_as_bash_does(form: str, run_dirs: dict[str, Path]) -> None:
    assert [line["update"] for line in lines(run_dirs[form])] == [1]
    assert lines(run_dirs[form]) == lines(run_dirs["bash"])


@pytest.mark.parametrize("form", FORMS)
def test_each_form_takes_the_recipe_and_the_overrides(form: str, run_dirs: dict[str, Path]) -> None:
    used, recipe = (read_settings(path) for path in (run_dirs[form] / "config.yaml", Path(LAUNCHER).with_suffix(".yaml")))
    assert (used["model"]["dtype"], used["parallel"]["sequence"], used["distill"]["clip"]) == ("bf16", True, 0.06)
    assert [used[section] for section in ("distill", "exposure", "optimizer") if not used[section].items() >= recipe[section].items()] == []
    assert (used["parallel"]["tensor"], used["run"]["updates"]) == (2, 1)
