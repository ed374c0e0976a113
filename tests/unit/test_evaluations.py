"""When a run evaluates, and which checkpoint it keeps for that: with evaluations whose figures are given."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_atesd.config import EvalConfig, MonitorConfig, RunConfig, TrainConfig
from megatron_atesd.report.monitor import Monitor
from megatron_atesd.train import evaluations
from megatron_atesd.train.evaluation import RESULT
from megatron_atesd.train.evaluation_files import EvaluationFile
from megatron_atesd.train.evaluations import Evaluations

BEST = EvalConfig(files=["math.jsonl", "aime.jsonl"], every=10, select="best", select_on="math")
NAMES = ("math", "aime")
SCORES = {0: 0.1, 10: 0.3, 20: 0.5, 30: 0.5, 35: 0.4}  # Average@K on math by step; a tenth of it on aime


class Given:
    """In place of the Evaluator: the figures are given, and written where it writes them."""

    def __init__(self, run: Any) -> None:
        self.dir, self.settings, self.asked = Path(run.config.run.dir), run.config, []

    def holds(self, *_: Any) -> bool:
        return True

    def evaluate(self, file: EvaluationFile, step: int) -> dict[str, Any]:
        self.asked.append((file.name, step))
        average = SCORES[step] / (1 if file.name == "math" else 10)
        shares = {"with_answer": 1.0, "truncated": 0.0, "loops": 0.0, "mean_tokens": 7.0, "samples": 4, "pass_at": {"4": 1.0}}
        folder = self.dir / "eval" / file.name / f"step_{step}"
        folder.mkdir(parents=True)
        (folder / RESULT).write_text(json.dumps(found := {"average_at_k": average, "ci95": [0.0, 1.0], **shares}))
        return found


class Signals:
    """In place of the StopRequest: a signal from the so many-th question on."""

    def __init__(self, after: int = 10**6) -> None:
        self.left = after

    def agreed(self) -> str:
        self.left -= 1
        return "SIGUSR1" if self.left < 0 else ""


class Job:
    """One start of a run of 35 updates, evaluated every 10."""

    def __init__(self, folder: Path, settings: EvalConfig = BEST) -> None:
        config = TrainConfig(run=RunConfig(dir=str(folder), updates=35), eval=settings)
        run: Any = SimpleNamespace(config=config)
        files = [EvaluationFile(name, Path(f"{name}.jsonl"), [], []) for name in NAMES[: len(settings.files)]]
        self.saver: Any = SimpleNamespace(finish=lambda wait: None, best=None)
        heartbeat: Any = SimpleNamespace(enter=lambda phase, minutes: None)
        self.folder, self.monitor = folder, Monitor(folder, 35, MonitorConfig(tensorboard=False), True, 0)
        self.evaluations = Evaluations(run, files, self.monitor, self.saver, heartbeat)

    def go(self, start: int, *steps: int, stop: Signals | None = None) -> str:
        """Begin, then evaluate after these updates, each of which has a checkpoint; the signal that came, if any."""
        signals: Any = stop or Signals()
        with self.monitor:
            asked = self.evaluations.begin(start, signals)
            for step in steps:
                (self.folder / "checkpoints" / f"step_{step}").mkdir(parents=True)
                asked = asked or self.evaluations.measure(step, signals)
        return asked

    @property
    def best(self) -> dict[str, Any]:
        return json.loads((self.folder / "best.json").read_text())


@pytest.fixture(autouse=True)
def _given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluations, "Evaluator", Given)


def no_signal() -> Any:
    return Signals()


def test_before_the_first_update_every_so_many_and_after_the_last(tmp_path: Path) -> None:
    assert [step for step in range(36) if Job(tmp_path).evaluations.due(step)] == [0, 10, 20, 30, 35]


def test_without_every_only_the_first_and_the_last(tmp_path: Path) -> None:
    assert [step for step in range(36) if Job(tmp_path, replace(BEST, every=0)).evaluations.due(step)] == [0, 35]


def test_without_files_never(tmp_path: Path) -> None:
    job = Job(tmp_path, EvalConfig())
    assert [step for step in range(36) if job.evaluations.due(step)] == []
    assert (job.go(0), job.evaluations.conclude()) == ("", {})


def test_the_best_so_far_is_kept_and_written_down(tmp_path: Path) -> None:
    job, seen = Job(tmp_path), []
    with job.monitor:
        job.evaluations.begin(0, no_signal())
        assert not (tmp_path / "best.json").exists()
        for step in (10, 20, 30, 35):
            (tmp_path / "checkpoints" / f"step_{step}").mkdir(parents=True)
            job.evaluations.measure(step, no_signal())
            seen.append((job.saver.best, job.best["step"], job.best["candidates"]))
    assert seen == [(10, 10, 1), (20, 20, 2), (20, 20, 3), (20, 20, 4)]


def test_a_run_that_goes_back_has_the_best_up_to_there(tmp_path: Path) -> None:
    Job(tmp_path).go(0, 10, 20, 30)
    for step in (20, 30):
        (tmp_path / "checkpoints" / f"step_{step}").rename(tmp_path / "checkpoints" / f"step_{step}.aside")
    back = Job(tmp_path)
    back.go(10)
    assert (back.saver.best, back.best["step"], back.best["candidates"]) == (10, 10, 1)
    assert sorted(folder.name for folder in (tmp_path / "eval" / "math").iterdir()) == [
        "step_0",
        "step_10",
        "step_20.aside",
        "step_30.aside",
    ]


def test_what_is_there_is_not_evaluated_again(tmp_path: Path) -> None:
    Job(tmp_path).go(0, 10)
    (tmp_path / "eval" / "aime" / "step_10" / RESULT).unlink()
    (tmp_path / "eval" / "aime" / "step_10").rmdir()
    again = Job(tmp_path)
    again.go(10)
    assert again.evaluations._evaluator.asked == [("aime", 10)]  # pyright: ignore[reportAttributeAccessIssue]


def test_a_signal_is_heard_between_two_files(tmp_path: Path) -> None:
    job = Job(tmp_path)
    assert job.go(0, 10, stop=Signals(after=3)) == "SIGUSR1"
    assert [(step, job.evaluations.missing(step)) for step in (0, 10)] == [(0, False), (10, True)]
    assert not (tmp_path / "best.json").exists()


def test_a_checkpoint_that_could_not_be_saved_has_no_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(tmp_path)
    with job.monitor:
        job.evaluations.begin(0, no_signal())
        assert job.evaluations.measure(10, no_signal()) == ""
    assert "warning: no evaluation after update 10: its checkpoint could not be saved" in capsys.readouterr().err
    assert not (tmp_path / "eval" / "math" / "step_10").exists()


def test_one_file_that_selects_is_told_to_be_biased(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Job(tmp_path / "two").go(0)
    assert "biased" not in capsys.readouterr().out
    Job(tmp_path / "one", replace(BEST, files=["math.jsonl"])).go(0)
    assert "a file that selects is biased upward, so give another one in eval.files that does not" in capsys.readouterr().out


def test_by_default_no_checkpoint_is_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(tmp_path, replace(BEST, select="last", select_on=""))
    job.go(0, 10, 20, 30, 35)
    assert job.evaluations.conclude()["eval"]["at_last"]["math"]["average_at_k"] == 0.4
    assert job.saver.best is None
    assert not (tmp_path / "best.json").exists()
    assert "best" not in capsys.readouterr().out
