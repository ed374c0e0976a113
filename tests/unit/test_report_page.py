"""report.html: everything of a run in one file that loads nothing and runs nothing; read with care; never at the cost of a training."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_atesd.evaluate.average import summarize
from megatron_atesd.evaluate.response_figures import Sampled
from megatron_atesd.report import page
from megatron_atesd.report.at_end import report_at_end
from megatron_atesd.report.page_evaluation import EVALUATION_SHARES
from megatron_atesd.report.page_parts import time_shares
from megatron_atesd.report.run_data import duration, load_run
from megatron_atesd.report.run_files import changed_settings, evaluations, key_settings, read_settings_of
from tests.support.run_record import save_run

ROOT = Path(__file__).resolve().parents[2]
EVALUATION = {"problems": 30, "samples": 12, "average_at_k": 0.5, "ci95": [0.4, 0.6], "greedy": None, "majority_at_k": 0.75}


class Outline(HTMLParser):
    """Tags of a page that are open at its end, all addresses in it, and its visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag not in ("meta", "br", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag] or tag in ("meta", "br", "wbr"), f"</{tag}> closes {self.open[-1:]}"
        if self.open[-1:] == [tag]:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data if self.open[-1:] != ["style"] else ""


def evaluate(folder: Path, **changed: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION | changed))
    return folder


@pytest.fixture(scope="module")
def outline(tmp_path_factory: pytest.TempPathFactory) -> Outline:
    """Of the page of two runs, one with evaluations and alarms, and of an evaluation elsewhere."""
    folder = tmp_path_factory.mktemp("runs")
    learned = save_run(folder / "<b>learned", more={"health/kl_collapse": 1.0})
    evaluate(learned / "eval" / "aime24" / "step_4")
    runs = {"<b>learned": learned, "a $x$ run": save_run(folder / "fixed", mode="fixed", more={"health/kl_collapse": 0.0})}
    page.write_report(runs, folder / "out" / "both.html", [evaluate(folder / "base", majority_at_k="much")])
    return Outline((folder / "out" / "both.html").read_text())


def test_the_page_is_whole(outline: Outline):
    assert outline.open == []


def test_the_page_loads_nothing_and_runs_nothing(outline: Outline):
    assert outline.tags.isdisjoint({"script", "link", "iframe", "object", "img"})
    assert [address[:30] for address in outline.addresses if not address.startswith(("#", "data:image/png;base64,"))] == []


def test_the_page_has_each_part(outline: Outline):
    for title in ("At a glance", "Evaluation", "Health", "Pictures", "Sample responses", "Where the time went", "Settings", "Environment"):
        assert outline.text.count(title) >= 2, title  # its heading and the link to it


def test_what_a_run_says_is_text(outline: Outline):
    assert "<script>alert(1)</script>" in outline.text
    assert "<b>learned: 8 of 100 updates" in outline.text
    assert "a $x$ run" in outline.text


def test_evaluations_are_told_with_what_they_have(outline: Outline):
    assert "<b>learned/eval/aime24/step_4301250.0 (40.0 – 60.0)75.0" in outline.text
    assert "base301250.0 (40.0 – 60.0)–" in outline.text


def test_every_share_of_a_real_evaluation_has_its_column():
    sampled = Sampled(np.ones((2, 2), bool), np.zeros((2, 2), bool), np.zeros((2, 2), bool), np.ones((2, 2), np.int64), np.ones(2))
    assert set(summarize(np.ones((2, 2)), np.ones(2), None, sampled)) >= set(EVALUATION_SHARES)


def test_alarms_are_told_with_their_updates(outline: Outline):
    assert "<b>learnedhealth/kl_collapse8: 1 … 8" in outline.text


def test_only_settings_that_differ_come_first(tmp_path: Path):
    settings = read_settings_of(save_run(tmp_path / "run"))
    assert changed_settings(settings) == {}
    assert changed_settings(settings | {"exposure.hold": 7, "optimizer.lr": 0.1}) == {"exposure.hold": 7, "optimizer.lr": 0.1}
    assert key_settings(settings | {"exposure.hold": 7})["exposure.hold"] == 7


def test_evaluations_are_in_order_of_their_updates(tmp_path: Path):
    for step in (100, 20, 3):
        evaluate(tmp_path / "eval" / "aime" / f"step_{step}")
    evaluate(tmp_path / "eval" / "aime" / "step_30.aside.2")  # the run has gone on from an earlier step
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "evaluation.json").write_text("[1")
    assert list(evaluations(tmp_path)) == [f"eval/aime/step_{step}" for step in (3, 20, 100)]


def test_the_start_and_the_end_are_means_of_a_tenth(tmp_path: Path):
    run = load_run(save_run(tmp_path / "run", updates=20))
    assert run.start_and_end("rollout/accuracy") == pytest.approx((0.15, 1.95))


@pytest.mark.parametrize(("seconds", "told"), [(7.2, "7 s"), (200, "3 min 20 s"), (18720, "5 h 12 min")])
def test_durations(seconds: float, told: str):
    assert duration(seconds) == told


def test_the_layout_says_what_is_split(tmp_path: Path):
    run = load_run(save_run(tmp_path / "run"))
    assert run.layout() == "DP 4 (4 processes)"
    run.settings["parallel.tensor"] = 2
    assert run.layout() == "TP 2 × DP 2 (4 processes)"


def test_a_run_without_anything_but_metrics_has_a_report(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"update": 1, "distill/kl": null}\n')
    found = Outline(page.report_page({"run": load_run(tmp_path)}, {}))
    assert "No config.yaml was found." in found.text


def test_a_finished_training_says_where_its_report_is(tmp_path: Path):
    said: list[str] = []
    report_at_end(save_run(tmp_path / "run"), said.append)
    assert said == [f"report: {tmp_path / 'run' / 'report.html'}"]
    assert (tmp_path / "run" / "report.html").read_text().startswith("<!doctype html>")


def test_a_report_that_fails_fails_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    monkeypatch.setattr(page, "write_report", lambda *_: 1 / 0)
    report_at_end(tmp_path, said.append)
    assert re.fullmatch(r"warning: .*report.html could not be written \(ZeroDivisionError: division by zero\); .*", "".join(said))


def test_without_matplotlib_a_training_says_how_to_get_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    report_at_end(tmp_path, said.append)
    assert [line.count("needs matplotlib (pip install") for line in said] == [1]


def report(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tools.report", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT)


def test_the_command_writes_the_page_into_the_run(tmp_path: Path):
    run = save_run(tmp_path / "run")
    assert (report(run).stdout, (run / "report.html").is_file()) == (f"wrote {run / 'report.html'}\n", True)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("nowhere",), "nowhere/metrics.jsonl cannot be read"),
        (("a", "b"), "2 runs and no --out"),
        (("a", "--out", "page.pdf"), "must end in .html"),
        (("a", "--evaluation", "b"), "--evaluation b: there is no evaluation.json in it"),
    ],
)
def test_the_command_refuses_in_one_line(arguments: tuple[str, ...], reason: str):
    done = report(*arguments)
    assert (done.returncode, done.stderr.count("\n"), reason in done.stderr) == (2, 1, True)


def test_evaluations_have_their_share_of_the_time(tmp_path: Path):
    lines = [{"update": 1, "time/step": 2.0, "time/rollout": 1.0, "time/eval": 3.0}, {"update": 2, "time/step": 2.0, "time/between": 3.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "7 s: rollout 14 %, eval 43 %, saving and other 43 %" in time_shares({"run": load_run(tmp_path)})
