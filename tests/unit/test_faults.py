"""What the fault harness looks at: equal states, finished and unfinished checkpoints."""

import json
import os
import time
from pathlib import Path

import pytest
import torch

from megatron_atesd.checkpoint.manifest import checksums, write_manifest
from megatron_atesd.faults.chaos import Chaos, KillPlan, saving
from megatron_atesd.faults.state import differences, metrics, reproducible

STATE = {"/weight": torch.tensor([0.0, 1.0, float("nan")]), "/update": 3, "/reward": float("nan")}


def test_equal_states_have_no_differences() -> None:
    assert differences(STATE, {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in STATE.items()}) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("/weight", torch.tensor([-0.0, 1.0, float("nan")])),
        ("/weight", torch.tensor([0.0, 1.0, float("nan")], dtype=torch.float64)),
        ("/update", 4),
        ("/update", 3.0),
        ("/reward", 0.0),
    ],
)
def test_one_bit_or_another_type_is_a_difference(path: str, value: object) -> None:
    assert differences(STATE, STATE | {path: value}) == [path]


def test_what_only_one_state_has_is_a_difference() -> None:
    assert differences(STATE, STATE | {"/more": 1}) == ["/more"]
    assert differences(STATE | {"/more": 1}, STATE) == ["/more"]


def test_only_a_save_that_began_since_counts_as_going_on(tmp_path: Path) -> None:
    for name in ("step_1.0123abcd.partial", "step_2.4567cdef.partial", "step_3"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / "latest.partial").write_text("step_3\n")
    now = time.time()
    os.utime(tmp_path / "checkpoints" / "step_1.0123abcd.partial", (now - 100, now - 100))
    assert saving(tmp_path, now - 50) == {"step_2.4567cdef.partial"}


def test_a_folder_that_goes_while_it_is_read_holds_nothing_being_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job at its start tries whether it can make checkpoints/, and removes it again."""
    (tmp_path / "checkpoints").mkdir()

    def gone(path: Path) -> None:
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "scandir", gone)
    assert saving(tmp_path, 0) == set()


def test_metrics_are_compared_without_time_and_memory(tmp_path: Path) -> None:
    assert metrics(tmp_path) == []
    line = {"update": 1, "distill/kl": 0.5, "time/step": 3.0, "perf/padding": 0.1, "memory/peak_gib": 2.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert [reproducible(found) for found in metrics(tmp_path)] == [{"update": 1, "distill/kl": 0.5}]


def test_a_finished_checkpoint_that_is_damaged_or_gone_is_reported(tmp_path: Path) -> None:
    chaos = Chaos(KillPlan((), tmp_path), print)
    for name in ("step_1", "step_2"):
        folder = tmp_path / "run_1" / "checkpoints" / name
        folder.mkdir(parents=True)
        (folder / "common.pt").write_bytes(b"state")
        write_manifest(folder, checksums(folder, ["common.pt"]))
    assert chaos.check_kept(tmp_path / "run_1", set()) == {"step_1", "step_2"}
    assert chaos.report.lost == []
    (tmp_path / "run_1" / "checkpoints" / "step_2" / "common.pt").write_bytes(b"stale")
    assert chaos.check_kept(tmp_path / "run_1", {"step_0", "step_1", "step_2"}) == {"step_1"}
    damaged, gone = chaos.report.lost
    assert "common.pt: its checksum differs" in damaged
    assert gone == "run_1/step_0: gone"
