"""A training that evaluates is the training that does not, and what it finds is what tools/evaluate.py finds, also where it was stopped."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from megatron_atesd.config import RolloutConfig, load_config
from megatron_atesd.data.problems import save_problems
from megatron_atesd.data.sources.chain import chain_splits
from megatron_atesd.evaluate.evaluation import evaluate, with_flags
from megatron_atesd.evaluate.prepare import Evaluation
from megatron_atesd.faults.state import checkpoint_state, differences, metrics, reproducible
from megatron_atesd.report.legend import describe
from megatron_atesd.train.evaluation import Evaluator
from megatron_atesd.train.evaluation_files import EvaluationFile
from megatron_atesd.train.loop import train
from megatron_atesd.train.selection import Figures
from tests.support.launch import run_distributed
from tests.support.small_run import arguments, save_inputs

pytestmark = pytest.mark.slow

UPDATES, SAMPLES = 4, 2
# α is fixed: nothing but the weights tells one evaluation from another.
RUN = (f"--run.updates={UPDATES}", "--exposure.mode=fixed", "--monitor.samples=0", "--monitor.figure_every=0", "--checkpoint.keep=1")
EVAL = ("--eval.every=2", f"--eval.samples={SAMPLES}", "--eval.select=best", "--eval.select_on=easy")


@dataclass(frozen=True)
class Runs:
    """Run directories by name, and what each job said."""

    folder: Path
    said: dict[str, str]

    def responses(self, run: str, name: str, step: int) -> list[dict[str, Any]]:
        lines = (self.folder / run / "eval" / name / f"step_{step}" / "responses.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def json(self, run: str, path: str) -> Any:
        return json.loads((self.folder / run / path).read_text())


def job(inputs: Path, run_dir: Path, *overrides: str) -> str:
    """One start of the training; what it said."""
    said = StringIO()
    with redirect_stdout(said):
        train(load_config(arguments(inputs, run_dir, *RUN, *overrides)))
    return said.getvalue()


def evaluated(inputs: Path, run_dir: Path, *overrides: str) -> str:
    files = json.dumps([str(inputs / "easy.jsonl"), str(inputs / "hard.jsonl")])
    return job(inputs, run_dir, f"--eval.files={files}", *EVAL, *overrides)


def all_runs(inputs: Path, folder: Path) -> dict[str, str]:
    """On two ranks. One start of two processes serves all runs."""
    dist.init_process_group("gloo")
    said = {"plain": job(inputs, folder / "plain"), "whole": evaluated(inputs, folder / "whole")}
    said["data"] = evaluated(inputs, folder / "data", "--parallel.tensor=1", "--run.updates=1")
    with signal_between_files(at=2):
        said["stopped first"] = evaluated(inputs, folder / "stopped")
    said["stopped"] = evaluated(inputs, folder / "stopped")
    for name, prepare, overrides in (("killed", as_killed, ()), ("back", lambda _: None, ("--checkpoint.resume=step_2",))):
        on_first(lambda prepare=prepare, name=name: prepare(copied(folder / "whole", folder / name)))
        said[name] = evaluated(inputs, folder / name, *overrides)
    command_line(inputs, folder)
    return said


@contextmanager
def signal_between_files(at: int) -> Iterator[None]:
    """Rank 1 gets SIGUSR1 when `easy` is evaluated after update `at`, and `hard` is not."""
    evaluate_file = Evaluator.evaluate

    def interrupted(evaluator: Evaluator, file: EvaluationFile, step: int) -> Figures:
        found = evaluate_file(evaluator, file, step)
        if (file.name, step, dist.get_rank()) == ("easy", at, 1):
            os.kill(os.getpid(), signal.SIGUSR1)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, "evaluate", interrupted)
        yield


def on_first(step: Callable[[], object]) -> None:
    if dist.get_rank() == 0:
        step()
    dist.barrier()


def copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def as_killed(run_dir: Path) -> None:
    """As a kill amid the evaluation of `hard` after update 2 leaves it: three responses on disk, one of them marked."""
    shutil.rmtree(run_dir / "checkpoints" / "step_4")
    for name in ("easy", "hard"):
        shutil.rmtree(run_dir / "eval" / name / "step_4")
    folder = run_dir / "eval" / "hard" / "step_2"
    kept = [json.loads(line) for line in (folder / "responses.jsonl").read_text().splitlines()[:3]]
    kept[1]["text"] = "known again"
    (folder / "unfinished").mkdir()
    (folder / "unfinished" / "rank_1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept) + '{"id": "cut o')
    for name in ("responses.jsonl", "evaluation.json"):
        (folder / name).unlink()


def command_line(inputs: Path, folder: Path) -> None:
    """tools/evaluate.py on the run's last checkpoint, with its settings said by flags."""
    settings = load_config(arguments(inputs, folder / "whole", *RUN))
    settings = with_flags(settings, RolloutConfig(16, 0, 1.0, 0, 0.95), "training", False)
    model = folder / "whole" / "checkpoints" / "step_4"
    evaluate(Evaluation(model, inputs / "hard.jsonl", folder / "command", SAMPLES, 1, 1, 5.0, settings))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    inputs, folder = save_inputs(tmp_path_factory.mktemp("inputs")), tmp_path_factory.mktemp("runs")
    for name, problems in chain_splits({"easy": 5, "hard": 3}, seed=7).items():
        save_problems(problems, inputs / f"{name}.jsonl")
    return Runs(folder, run_distributed(all_runs, 2, inputs, folder)[0])


def trained(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in reproducible(line).items() if not name.startswith("eval/")}


def test_evaluations_change_nothing_of_the_run(runs: Runs) -> None:
    plain, whole = (checkpoint_state(runs.folder / name / "checkpoints" / "step_4") for name in ("plain", "whole"))
    assert [path for path in differences(plain, whole) if not path.startswith("/plain/run/config/eval/")] == []
    assert [trained(line) for line in metrics(runs.folder / "whole")] == [reproducible(line) for line in metrics(runs.folder / "plain")]


def test_an_evaluation_is_that_of_the_command(runs: Runs) -> None:
    command = [json.loads(line) for line in (runs.folder / "command" / "responses.jsonl").read_text().splitlines()]
    assert runs.responses("whole", "hard", 4) == [line for line in command if line["sample"] >= 0]
    ours, theirs = (
        json.loads((folder / "settings.json").read_text()) for folder in (runs.folder / "whole/eval/hard/step_4", runs.folder / "command")
    )
    assert ours == theirs
    assert runs.json("whole", "eval/hard/step_4/evaluation.json")["average_at_k"] == runs.json("command", "evaluation.json")["average_at_k"]


def test_its_metrics_stand_in_the_lines_of_its_updates(runs: Runs) -> None:
    lines = metrics(runs.folder / "whole")
    assert [line["update"] for line in lines if "time/eval" in line] == [2, 4]
    names = {name for line in lines for name in line if name.startswith("eval/")}
    assert {name.rpartition("/")[2] for name in names} == {
        *("average_at_k", "ci_low", "ci_high", "pass_at_k", "answered", "truncated", "loops", "length"),
    }
    assert {name.split("/")[1] for name in names} == {"easy", "hard"}
    assert all(describe(name) for name in names)
    for step in (2, 4):
        found = runs.json("whole", f"eval/hard/step_{step}/evaluation.json")
        line = lines[step - 1]
        assert (line["eval/hard/average_at_k"], line["eval/hard/length"]) == (found["average_at_k"], found["mean_tokens"])


def test_the_same_weights_give_the_same_responses_at_any_layout_and_update(runs: Runs) -> None:
    for name in ("easy", "hard"):
        assert runs.responses("data", name, 0) == runs.responses("whole", name, 0)
    assert len({line["text"] for line in runs.responses("whole", "easy", 0)}) > 1


def test_a_stop_between_two_files_is_followed_at_once_and_made_good(runs: Runs) -> None:
    assert "evaluation after update 2" not in runs.said["stopped first"]
    assert "stopped by SIGUSR1 after update 2: step_2 is saved; start the same command to go on" in runs.said["stopped first"]
    assert "update 2/4" not in runs.said["stopped"]
    assert "evaluation before the first update:" not in runs.said["stopped"]
    assert "evaluation after update 2: easy" in runs.said["stopped"]
    assert [reproducible(line) for line in metrics(runs.folder / "stopped")] == [
        reproducible(line) for line in metrics(runs.folder / "whole")
    ]
    for step in (0, 2, 4):
        for name in ("easy", "hard"):
            assert runs.responses("stopped", name, step) == runs.responses("whole", name, step)
    assert runs.json("stopped", "best.json") == runs.json("whole", "best.json")


def test_a_kill_amid_an_evaluation_loses_no_response(runs: Runs) -> None:
    known, whole = (runs.responses(run, "hard", 2) for run in ("killed", "whole"))
    assert known[1]["text"] == "known again"
    assert [line for i, line in enumerate(known) if i != 1] == [line for i, line in enumerate(whole) if i != 1]
    assert "evaluation before the first update:" not in runs.said["killed"]
    assert not (runs.folder / "killed/eval/hard/step_2/unfinished").exists()


def test_going_back_leaves_the_later_evaluations_aside(runs: Runs) -> None:
    for name in ("easy", "hard"):
        assert {folder.name for folder in (runs.folder / "back/eval" / name).iterdir()} == {"step_0", "step_2", "step_4", "step_4.aside"}
    assert runs.json("back", "best.json") == runs.json("whole", "best.json")


def test_the_best_checkpoint_is_there_beside_the_newest(runs: Runs) -> None:
    best = runs.json("whole", "best.json")
    scores = {step: runs.json("whole", f"eval/easy/step_{step}/evaluation.json")["average_at_k"] for step in (2, 4)}
    assert (best["step"], best["score"], best["candidates"]) == (max(scores, key=scores.__getitem__), max(scores.values()), 2)
    kept = {folder.name for folder in (runs.folder / "whole/checkpoints").glob("step_*")}
    assert kept == {f"step_{best['step']}", "step_4"}
    assert runs.json("whole", "summary.json")["eval"]["best"]["step"] == best["step"]
    assert f"result by eval.select best: step_{best['step']}, the checkpoint with the highest Average@2 on easy" in runs.said["whole"]


def test_the_start_says_what_each_evaluation_draws(runs: Runs) -> None:
    assert "after every 2 updates and after the last: 16 responses (easy 5 × 2, hard 3 × 2) of at most 16 tokens" in runs.said["whole"]
