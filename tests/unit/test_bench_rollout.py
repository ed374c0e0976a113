"""The benchmark of rollouts: prompts decide the lengths in every engine, ratios are those of one run, and it refuses what cannot be."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from benchmarks import rollouts
from benchmarks.generators import GENERATORS, config_of
from benchmarks.process import MeasurementError
from benchmarks.rollout_model import marked_prompt, save_rollout_model
from benchmarks.rollout_settings import RolloutSettings
from benchmarks.rollout_task import RolloutTask, draw_prompts
from benchmarks.tables import rollout_tables
from benchmarks.workload import Workload
from megatron_atesd.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
TINY = Workload("tiny", 2, 64, 4, 2, 16, 128, 64, True, prompts=4, prompt_tokens=12, reference_tokens=8, response_tokens=100)
LENGTHS = [2, 3, 16, 37, 38, 39, 99, 100]  # with the stop token


def task(engine: str, folder: Path, prompts: Sequence[Sequence[int]] = (), batch: int = 3) -> RolloutTask:
    return RolloutTask(TINY, batch, "mixed", engine, 1, "fp32", "cpu", 1, str(folder), prompts, 100)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("model")
    save_rollout_model(Workload(**{**vars(TINY), "tied": request.param}), found, seed=3)
    return found


@pytest.mark.parametrize("engine", ["training", "transformers"])
def test_a_prompt_decides_how_long_its_response_is(engine: str, folder: Path) -> None:
    """Prompts of several sizes in one batch, and each alone."""
    draw = Random(0)
    prompts = [marked_prompt(draw.randint(11, 20), length, TINY.vocabulary, draw) for length in LENGTHS]
    asked = task(engine, folder, prompts)
    with GENERATORS[engine](asked) as (generate, _):
        assert [generate([prompt], asked.sampling).tokens for prompt in prompts] == LENGTHS
        assert generate(prompts, asked.sampling).tokens == sum(LENGTHS)


def test_transformers_pays_for_the_longest_response_of_each_batch(folder: Path) -> None:
    prompts = [marked_prompt(12, length, TINY.vocabulary, Random(0)) for length in (5, 30, 7, 20)]
    with GENERATORS["transformers"](task("transformers", folder)) as (generate, _):
        found = generate(prompts, task("transformers", folder).sampling)
    assert (found.tokens, found.slots) == (62, 3 * 30 + 20)


def test_the_engine_is_asked_for_the_batch() -> None:
    config = config_of(task("vllm", Path("model"), batch=7))
    assert (config.engine.name, config.engine.batch, config.model.path) == ("vllm", 7, "model")


@pytest.mark.parametrize(("batch", "lengths", "prompts", "limit"), [(8, "equal", 8, 100), (32, "mixed", 128, 512), (64, "mixed", 128, 512)])
def test_mixed_lengths_come_from_a_queue_longer_than_the_batch(batch: int, lengths: str, prompts: int, limit: int) -> None:
    found, most = draw_prompts(TINY, batch, lengths, 1)
    assert (len(found), most) == (prompts, limit)


def measured(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[tuple[str, int], list[float]], said: list[str], **more: Any
) -> list[dict[str, Any]]:
    """Rows when the processes give these seconds by engine and tensor-parallel size, one a repeat; one without any has failed."""

    def result_of(worker: Sequence[str], task: RolloutTask, gpus: int) -> dict[str, Any]:
        left = seconds[task.engine, task.tensor]
        if not left:
            raise MeasurementError(f"{task.name}: no memory")
        slots = 200 if task.engine == "transformers" else None
        return {
            "seconds": left.pop(0),
            "tokens": 120,
            "slots": slots,
            "peak_gib": 0.5,
            "processor_seconds": 2.0 * task.tensor,
            "cache_bytes": None,
            "token_bytes": None,
        }

    monkeypatch.setattr(rollouts, "result_of", result_of)
    monkeypatch.setattr(rollouts, "find_spec", lambda name: None)
    settings = RolloutSettings(batches=(8,), device="cpu", **more)
    return rollouts.rollout_rows([TINY], settings, said.append)


def test_speeds_are_medians_and_ratios_to_transformers_on_the_same_case(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {("training", 1): [1.0, 9.0, 2.0, 4.0, 4.0, 4.0], ("training", 2): [3.0] * 6, ("transformers", 1): [6.0] * 3 + [2.0] * 3}
    rows = measured(monkeypatch, seconds, [], tensors=(1, 2), repeats=3)
    assert [(row["lengths"], row["engine"], row["tensor"], row["tokens_per_second"], row["ratio_tokens_per_second"]) for row in rows] == [
        ("equal", "training", 1, 60.0, 3.0), ("equal", "training", 2, 40.0, 2.0), ("equal", "transformers", 1, 20.0, 1.0),
        ("mixed", "training", 1, 30.0, 0.5), ("mixed", "training", 2, 40.0, pytest.approx(2 / 3)), ("mixed", "transformers", 1, 60.0, 1.0),
    ]  # fmt: skip
    assert [row["slot_use"] for row in rows[:3]] == [None, None, 0.6]
    assert [row["ratio_processor_seconds"] for row in rows[:3]] == [1.0, 2.0, 1.0]


def test_a_peer_that_fails_or_is_missing_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    rows = measured(monkeypatch, {("training", 1): [1.0], ("transformers", 1): []}, said, lengths=("equal",))
    assert [row["engine"] for row in rows] == ["training"]
    assert "ratio_tokens_per_second" not in rows[0]
    assert {"vllm left out: it is not installed here", "tiny, batch 8, equal lengths, transformers: no memory; left out"} < set(said)
    assert len(rollout_tables(rows)) == 1


def test_a_failure_of_this_project_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MeasurementError, match="tiny, batch 8, equal lengths, training TP 2: no memory"):
        measured(monkeypatch, {("training", 2): []}, [], tensors=(2,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": ("long",)}, "--lengths names 'long'; choose from equal, mixed"),
        ({"engines": ("trl",)}, "--engines names 'trl'"),
        ({"batches": (1, 0)}, "--batches is 0, must be 1 or more"),
        ({"repeats": 0}, "--repeats is 0"),
        ({"tensors": (4,)}, "--tensors names 4, must divide query_groups of workload tiny, 2"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RolloutSettings(device="cpu", **changes).check([TINY])


@pytest.mark.parametrize("size", [{"prompt_tokens": 10}, {"vocabulary": 13}, {"prompt_tokens": 513}])
def test_a_workload_without_room_for_marks_is_refused(size: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="workload tiny: "):
        RolloutSettings(device="cpu").check([Workload(**{**vars(TINY), **size})])


def test_only_an_absent_engine_leaves_nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--engines leaves nothing to measure"):
        measured(monkeypatch, {}, [], engines=("vllm",))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--batches", "1,many", "--batches is '1,many', must be whole numbers with commas between them, for example 1,32\n"),
        ("--workloads", "W1,W3", "--workloads names 'W3', which "),
    ],
)
def test_the_command_refuses_in_one_line(option: str, value: str, message: str) -> None:
    command = [sys.executable, str(ROOT / "tools" / "bench_rollout.py"), option, value]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {message}")
    assert ended.stderr.count("\n") == 1


def test_the_quickstart_workload_is_the_quickstarts_model() -> None:
    from examples.quickstart.tokenizer import build_tokenizer

    entry = json.loads((ROOT / "tools" / "benchmarks" / "workloads.json").read_text())["quickstart"]
    assert entry["vocabulary"] == len(build_tokenizer())
