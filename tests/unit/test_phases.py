"""Where the time of a run went, from lines made by hand."""

import json
from pathlib import Path

import pytest

from megatron_atesd.config import TrainConfig
from megatron_atesd.report.phases import REST, account, phases_of
from megatron_atesd.train.metrics import write_summary

# 10 s and 14 s of updates, of which 1 s is in no phase each; an evaluation of 4 s and a save of 2 s between them.
LINES = [
    {"time/step": 10.0, "time/rollout": 6.0, "time/student": 3.0, "time/eval": 4.0, "perf/tokens_per_second": 50.0, "memory/peak_gib": 1.5},
    {"time/step": 14.0, "time/rollout": 9.0, "time/student": 4.0, "time/between": 6.0, "perf/tokens_per_second": 100.0},
]


def test_every_second_is_in_one_phase():
    phases = phases_of(LINES)
    assert phases.seconds == {"rollout": 15.0, "student": 7.0, "eval": 4.0, REST: 1.0 + 1.0 + 2.0}
    assert phases.total == 10.0 + 6.0 + 14.0


def test_an_evaluation_after_the_last_update_takes_nothing_from_the_rest():
    assert phases_of(LINES[:1]).seconds == {"rollout": 6.0, "student": 3.0, "eval": 4.0, REST: 1.0}


def test_a_resumed_run_does_not_know_the_time_between_its_processes():
    again = [*LINES, {"time/step": 5.0, "time/rollout": 5.0}]
    assert phases_of(again).total == phases_of(LINES).total + 5.0


def test_figures_of_the_whole_run():
    phases = phases_of(LINES)
    assert (phases.updates, phases.median_update_seconds, phases.response_tokens, phases.peak_memory_gib) == (2, 12.0, 1900, 1.5)


def test_a_value_that_is_not_known_counts_nothing():
    assert phases_of([{"time/step": 2.0, "time/rollout": None}]).seconds == {REST: 2.0}


def test_shares_add_up_in_the_summary(tmp_path: Path):
    lines = [{"update": i, "exposure/alpha": 0.5, **line} for i, line in enumerate(LINES, 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_summary(tmp_path, TrainConfig())
    phases = json.loads((tmp_path / "summary.json").read_text())["phases"]
    assert phases["shares"]["rollout"] == pytest.approx(0.5)
    assert sum(phases["shares"].values()) == pytest.approx(1.0)
    assert phases["response_tokens"] == 1900


def test_the_account_names_what_took_longest_and_what_to_do():
    lines = account(phases_of(LINES)).splitlines()
    assert lines[0] == "phases of 2 updates, 30.0 s:"
    assert lines[1].split() == ["rollout", "15.0", "s", "50.0", "%"]
    assert lines[-2] == "  median update 12.00 s, 1,900 response tokens, peak memory 1.50 GiB"
    assert lines[-1].startswith("  rollout took 50 % of the time: engine.name vllm")


def test_every_remedy_names_settings_that_there_are():
    from megatron_atesd.config import all_settings
    from megatron_atesd.report.phases import REMEDIES

    sections = {name.partition(".")[0] for name in all_settings()}
    named = {word.strip(",;.()") for text in REMEDIES.values() for word in text.split() if word.partition(".")[0] in sections}
    assert named
    assert named <= all_settings().keys()


def test_a_run_without_times_has_no_account():
    assert account(phases_of([{"distill/loss": 1.0}])) == ""
