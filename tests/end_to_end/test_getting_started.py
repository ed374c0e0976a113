"""docs/getting-started.md: its commands, as they stand there, take a file of problems to a trained, exported, evaluated model."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_atesd.config import load_config
from megatron_atesd.faults.state import metrics
from tests.support.patience import PATIENCE
from tests.support.small_run import ROOT

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "getting-started.md"


def commands() -> str:
    """The blocks marked bash, in their order; those marked sh install something, or are for another machine."""
    return "\n".join(re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the commands have filled, with what they said in said.txt."""
    folder = tmp_path_factory.mktemp("first") / "work"
    inherited = {name: value for name, value in os.environ.items() if name not in ("MODEL", "RECIPE", "PROBLEMS", "PROCESSES")}
    given = {"WORK": str(folder), "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    script = ["bash", "-euo", "pipefail", "-c", commands()]
    result = subprocess.run(
        script, cwd=ROOT, env=inherited | given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE
    )
    assert result.returncode == 0, result.stdout[-5000:]
    (folder / "said.txt").write_text(result.stdout, encoding="utf-8")
    return folder


def test_the_three_files_share_no_problem_and_lose_none(work: Path):
    parts = [line for name in ("test", "probe", "train") for line in (work / f"{name}.jsonl").read_text().splitlines()]
    assert parts == (work / "all.jsonl").read_text().splitlines()
    assert len(set(parts)) == len(parts)


def test_every_update_of_the_recipe_was_made(work: Path):
    recipe = load_config(["--config", str(ROOT / "examples" / "getting_started.yaml")])
    assert [line["update"] for line in metrics(work / "run")] == list(range(1, recipe.run.updates + 1))


def test_both_conversions_were_verified(work: Path):
    assert (work / "said.txt").read_text().count("verify: largest logit difference") == 2


def test_training_reached_the_exported_folder(work: Path):
    before, after = (work / name / "model.safetensors" for name in ("tiny", "trained"))
    assert before.read_bytes() != after.read_bytes()


def test_the_comparison_is_of_both_evaluations(work: Path):
    arms = json.loads((work / "compare.json").read_text())["arms"]
    found = {when: json.loads((work / when / "evaluation.json").read_text()) for when in ("before", "after")}
    assert {when: (arm["average_at_k"], arm["mean_tokens"]) for when, arm in arms.items()} == {
        when: (figures["average_at_k"], figures["mean_tokens"]) for when, figures in found.items()
    }


def test_the_last_lines_say_what_the_difference_is_worth(work: Path):
    sentence = json.loads((work / "compare.json").read_text())["differences"]["after"]["sentence"]
    assert sentence in (work / "said.txt").read_text()
