"""The monitor: one truth in metrics.jsonl, TensorBoard and console, also after a resume and with values that are not finite."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_atesd.config import MonitorConfig
from megatron_atesd.report import monitor as module
from megatron_atesd.report.monitor import Monitor, keep_lines_until
from megatron_atesd.report.samples import read_samples
from tests.support.run_record import SAMPLE

PLAIN = MonitorConfig(tensorboard=False)
METRICS = {
    "distill/loss": 0.25,
    "distill/kl": 0.5,
    "exposure/alpha": 0.75,
    "probe/nll": 1.5,
    "rollout/accuracy": 0.125,
    "perf/tokens_per_second": 12345.6,
    "time/step": 2.0,
    "optim/lr": 1e-4,
}


def write_run(run_dir: Path, updates: range, config: MonitorConfig = PLAIN, total: int = 10) -> None:
    with Monitor(run_dir, total, config, is_main=True, start=updates.start - 1) as monitor:
        for update in updates:
            monitor.log(update, {"distill/loss": float(update), "exposure/alpha": update / 10})


def lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def events(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir / "tensorboard"), purge_orphaned_data=True).Reload()


def test_one_sorted_line_an_update(tmp_path: Path):
    with Monitor(tmp_path, 10, PLAIN, is_main=True, start=0) as monitor:
        monitor.log(1, {"b": 2.0, "a": 1.0})
        assert (tmp_path / "metrics.jsonl").read_text() == '{"a": 1.0, "b": 2.0, "update": 1}\n'  # there at once


def test_values_that_are_not_finite_are_null(tmp_path: Path):
    with Monitor(tmp_path, 10, PLAIN, is_main=True, start=0) as monitor:
        monitor.log(1, {"distill/loss": math.nan, "distill/kl": math.inf})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"distill/loss": None, "distill/kl": None, "update": 1}


def test_what_is_measured_later_joins_the_line_of_its_update(tmp_path: Path):
    with Monitor(tmp_path, 10, MonitorConfig(figure_every=0), is_main=True, start=0) as monitor:
        monitor.log_later(0, {"eval/math/average_at_k": 0.25})
        monitor.log(1, {"a": 1.0})
        monitor.log(2, {"a": 2.0})
        monitor.log_later(2, {"eval/math/average_at_k": 0.5, "eval/math/ci_low": math.nan})
        monitor.log(3, {"a": 3.0})
    assert lines(tmp_path) == [
        {"a": 1.0, "update": 1},
        {"a": 2.0, "eval/math/average_at_k": 0.5, "eval/math/ci_low": None, "update": 2},
        {"a": 3.0, "update": 3},
    ]
    assert [(e.step, e.value) for e in events(tmp_path).Scalars("eval/math/average_at_k")] == [(0, 0.25), (2, 0.5)]


def test_a_resumed_file_equals_that_of_an_unbroken_run(tmp_path: Path):
    write_run(tmp_path / "broken", range(1, 6))
    write_run(tmp_path / "broken", range(4, 8))  # from the checkpoint after update 3
    write_run(tmp_path / "unbroken", range(1, 8))
    assert (tmp_path / "broken" / "metrics.jsonl").read_bytes() == (tmp_path / "unbroken" / "metrics.jsonl").read_bytes()


def test_a_new_start_forgets_the_old_lines(tmp_path: Path):
    write_run(tmp_path, range(1, 4))
    write_run(tmp_path, range(1, 2))
    assert [line["update"] for line in lines(tmp_path)] == [1]


def test_samples_of_a_resumed_run_are_those_of_an_unbroken_one(tmp_path: Path):
    for start, updates in ((0, (2, 4, 6)), (4, (6,))):
        with Monitor(tmp_path, 10, PLAIN, is_main=True, start=start) as monitor:
            for update in updates:
                monitor.sample(replace(SAMPLE, update=update))
    assert [sample.update for sample in read_samples(tmp_path, 9)] == [2, 4, 6]


def test_a_torn_last_line_is_dropped(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"update": 1}\n{"update": 2}\n{"update": 3, "distill/lo')
    keep_lines_until(path, 3)
    assert path.read_text() == '{"update": 1}\n{"update": 2}\n'


def test_a_failed_truncation_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"update": 1}\n{"update": 2}\n')
    monkeypatch.setattr(module.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        keep_lines_until(path, 1)
    assert path.read_text() == '{"update": 1}\n{"update": 2}\n'


def test_other_ranks_write_and_say_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with Monitor(tmp_path / "run", 10, MonitorConfig(), is_main=False, start=0) as monitor:
        monitor.log(1, METRICS)
        monitor.sample(SAMPLE)
        monitor.message("hello")
    assert (list(tmp_path.iterdir()), capsys.readouterr().out) == ([], "")


def test_plain_output_is_one_line_an_update(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with Monitor(tmp_path, 3, PLAIN, is_main=True, start=0) as monitor:
        monitor.log(1, METRICS)
        monitor.message("problem [a]: 1 + 1")
        monitor.log(2, METRICS)
    out = capsys.readouterr().out.splitlines()
    assert [line[:11] for line in out] == ["update 1/3 ", "problem [a]", "update 2/3 "]
    assert "\x1b" not in "".join(out)


def test_the_time_between_updates_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The second update takes 2 of the 5 seconds since the first one was logged, a save the others; of the first nothing is known."""
    now = 100.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    with Monitor(tmp_path, 10, PLAIN, is_main=True, start=2) as monitor:
        monitor.log(3, METRICS)
        now = 105.0
        monitor.log(4, METRICS)
    assert [line.get("time/between") for line in lines(tmp_path)] == [None, 3.0]


def test_a_terminal_gets_a_progress_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with Monitor(tmp_path, 4, PLAIN, is_main=True, start=1) as monitor:
        monitor.log(2, METRICS)
    out = capsys.readouterr().out
    assert "━" in out
    assert "2/4" in out
    assert "0.2500" in out
