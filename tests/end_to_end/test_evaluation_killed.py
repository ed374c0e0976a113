"""An evaluation of a real model in real processes, killed with SIGKILL ten times, at other numbers of ranks."""

import json
import random
from pathlib import Path

import pytest
from torch.multiprocessing.spawn import ProcessExitedException

from tests.support.killed_evaluation import SAMPLES, evaluate, evaluate_on_second_stage
from tests.support.launch import run_distributed
from tests.support.small_run import save_inputs

pytestmark = pytest.mark.slow
RESPONSES = 8 * (1 + SAMPLES)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def unbroken(inputs: Path) -> Path:
    out = inputs / "unbroken"
    run_distributed(evaluate, 1, inputs, out, 1, 0, None)
    return out


def test_killed_ten_times_it_ends_with_the_same_files(inputs: Path, unbroken: Path) -> None:
    out, draw, known = inputs / "killed", random.Random(1), 0
    for _ in range(10):
        ranks, tensor = draw.choice([(1, 1), (2, 1), (2, 2)])
        with pytest.raises(ProcessExitedException, match="SIGKILL"):
            run_distributed(evaluate, ranks, inputs, out, tensor, draw.randrange(ranks), draw.randint(0, 2))
        lines = [line for path in (out / "unfinished").glob("*.jsonl") for line in path.read_bytes().splitlines()]
        keys = [(a["problem"], a["sample"]) for a in map(json.loads, lines)]
        assert len(set(keys)) == len(keys)  # none was generated twice
        assert known <= len(keys) < RESPONSES
        known = len(keys)
    assert known > 0
    run_distributed(evaluate, 2, inputs, out, 1, 0, None)
    for name in ("responses.jsonl", "evaluation.json", "settings.json"):
        assert (out / name).read_bytes() == (unbroken / name).read_bytes()
    assert not (out / "unfinished").exists()


def test_what_any_pipeline_stage_is_told_of_is_written(inputs: Path, unbroken: Path) -> None:
    run_distributed(evaluate_on_second_stage, 2, inputs, inputs / "stages")
    assert (inputs / "stages" / "responses.jsonl").read_bytes() == (unbroken / "responses.jsonl").read_bytes()


def test_a_finished_one_is_graded_again_without_the_model(inputs: Path, unbroken: Path) -> None:
    before = {path.name: path.read_bytes() for path in unbroken.iterdir()}
    (unbroken / "evaluation.json").unlink()
    summaries = run_distributed(evaluate, 2, inputs, unbroken, 1, 0, 0)  # dies at its first response
    assert {path.name: path.read_bytes() for path in unbroken.iterdir()} == before
    assert summaries[0]["samples"] == SAMPLES
    assert summaries[1] is None
