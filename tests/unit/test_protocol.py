"""Named protocols: what they fix, and that each deviation is said."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_atesd.config import RolloutConfig
from megatron_atesd.evaluate import evaluation
from megatron_atesd.evaluate.prepare import Evaluation
from megatron_atesd.evaluate.protocol import PROTOCOLS, protocol_record, protocol_text

ROOT = Path(__file__).resolve().parents[2]
PAPERS = RolloutConfig(max_new_tokens=38912, min_new_tokens=0, temperature=1.0, top_k=0, top_p=0.95, min_p=0.0, stop=[])


def evaluation_of(monkeypatch: pytest.MonkeyPatch, *flags: str) -> Evaluation:
    """What tools/evaluate.py would do."""
    tasks: list[Evaluation] = []
    monkeypatch.setattr(evaluation, "evaluate", tasks.append)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--model", "m", "--data", "d", "--out", "o", *flags])
    runpy.run_path(str(ROOT / "tools" / "evaluate.py"), run_name="__main__")
    return tasks[0]


def chosen(task: Evaluation) -> dict[str, Any]:
    return {"samples": task.samples, "thinking": task.settings.prompt.student_thinking, "rollout": task.settings.rollout}


def record(task: Evaluation) -> dict[str, Any] | None:
    return protocol_record(task.protocol, **chosen(task))


def test_the_protocol_of_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    task = evaluation_of(monkeypatch, "--protocol", "opsd_v3", "--seed", "7")
    assert chosen(task) == {"samples": 12, "thinking": True, "rollout": PAPERS}
    assert record(task) == {"name": "opsd_v3", "deviations": {}}
    assert protocol_text(record(task)) == "protocol opsd_v3, without deviation"


def test_the_defaults_are_what_they_were_and_name_no_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    task = evaluation_of(monkeypatch)
    assert chosen(task) == {"samples": 12, "thinking": True, "rollout": PAPERS}
    assert record(task) is None
    assert protocol_text(None) == "no protocol was named"


def test_a_protocol_replaces_the_defaults_and_a_flag_replaces_the_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    other = {**PROTOCOLS["opsd_v3"], "samples": 3, "thinking": False, "temperature": 0.6}
    monkeypatch.setitem(PROTOCOLS, "other", other)
    task = evaluation_of(monkeypatch, "--temperature", "0.8", "--protocol", "other", "--thinking")
    assert (task.samples, task.settings.rollout.temperature, task.settings.prompt.student_thinking) == (3, 0.8, True)
    assert record(task) == {"name": "other", "deviations": {"thinking": [False, True], "temperature": [0.6, 0.8]}}


@pytest.mark.parametrize("name", PROTOCOLS["opsd_v3"])
def test_every_value_that_deviates_is_said(name: str) -> None:
    wanted = PROTOCOLS["opsd_v3"][name]
    here = not wanted if isinstance(wanted, bool) else ["END"] if isinstance(wanted, list) else wanted + 1
    used: dict[str, Any] = {**PROTOCOLS["opsd_v3"], name: here}
    samples, thinking = used.pop("samples"), used.pop("thinking")
    found = protocol_record("opsd_v3", samples, thinking, RolloutConfig(**used))
    assert found == {"name": "opsd_v3", "deviations": {name: [wanted, here]}}
    assert json.loads(json.dumps(found)) == found
    assert protocol_text(found) == f"protocol opsd_v3, but {name.replace('_', ' ')} {here}, not {wanted}"


def test_a_protocol_fixes_all_of_sampling() -> None:
    assert PROTOCOLS["opsd_v3"].keys() == {"samples", "thinking", *RolloutConfig.__dataclass_fields__}
