"""Section health: the rules of stop_on, and the name that the threshold of the gap had before."""

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_atesd.config import EngineConfig, HealthConfig, TrainConfig, load_config
from megatron_atesd.config.health_rules import health_problems

CONFIG = TrainConfig()


def problems(health: HealthConfig, checked: int = 4) -> list[str]:
    return list(health_problems(replace(CONFIG, health=health, engine=EngineConfig(checked=checked))))


@pytest.mark.parametrize(
    ("health", "said"),
    [
        (HealthConfig(stop_on=["loop"]), "health.stop_on has 'loop', must be of kl_collapse, "),
        (HealthConfig(stop_on=["loop"]), "; did you mean loops?"),
        (HealthConfig(stop_on=["loops"], loops=None), "health.stop_on has loops, but health.loops is null"),
    ],
)
def test_an_alarm_that_can_never_end_the_run_is_refused(health: HealthConfig, said: str) -> None:
    (problem,) = problems(health)
    assert said in problem


def test_a_gap_that_nobody_measures_cannot_end_the_run() -> None:
    health = HealthConfig(stop_on=["logprob_gap"])
    assert problems(health) == []
    assert problems(health, checked=0) == [
        "health.stop_on has logprob_gap, but engine.checked 0 measures no gap; raise it, or remove the alarm from the list"
    ]


def test_alarms_to_stop_on_are_read_from_yaml_and_options(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("health: {stop_on: [loops, leakage], kl_explosion: null}\n")
    assert load_config(["--config", str(file)]).health == HealthConfig(stop_on=["loops", "leakage"], kl_explosion=None)
    assert load_config(["--config", str(file), "--health.stop_on=[loops]"]).health.stop_on == ["loops"]


def test_the_old_name_of_the_gaps_threshold_is_read(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("engine: {gap_alarm: 0.2, batch: 4}\n")
    config = load_config(["--config", str(file)])
    assert (config.health.logprob_gap, config.engine.batch) == (0.2, 4)
    assert load_config(["--engine.gap_alarm=0.3"]).health.logprob_gap == 0.3
