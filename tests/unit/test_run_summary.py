"""summary.json of a run, from a metrics.jsonl made by hand."""

import json
from pathlib import Path

import pytest

from megatron_atesd.config import TrainConfig
from megatron_atesd.train.metrics import write_summary


def summary(folder: Path, *lines: dict[str, float | None]) -> dict[str, float | None]:
    updates = [{"update": i, "exposure/alpha": 0.5, **line} for i, line in enumerate(lines, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in updates))
    write_summary(folder, TrainConfig())
    return json.loads((folder / "summary.json").read_text())


def test_the_cost_of_exposure_control_is_relative_to_the_rest(tmp_path: Path) -> None:
    found = summary(
        tmp_path,
        {"time/step": 10.0, "time/exposure": 1.0, "time/probe": 0.5},
        {"time/step": 6.0, "time/exposure": 0.25, "time/probe": 2.25},
    )
    assert (found["seconds"], found["exposure_seconds"], found["probe_seconds"]) == (16.0, 1.25, 2.75)
    assert found["exposure_share"] == pytest.approx(4 / 12)


def test_a_time_that_is_not_known_counts_nothing(tmp_path: Path) -> None:
    found = summary(tmp_path, {"time/step": 10.0}, {"time/step": 6.0, "time/exposure": None, "time/probe": 4.0})
    assert (found["exposure_seconds"], found["probe_seconds"]) == (0.0, 4.0)
    assert found["exposure_share"] == pytest.approx(4 / 12)


def test_no_update_has_no_share(tmp_path: Path) -> None:
    assert summary(tmp_path)["exposure_share"] is None
