"""Every field of megatron.core's settings is refused in one line, or the model is built with it, generates, and learns."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer import TransformerConfig

from megatron_atesd.config import RolloutConfig, ScheduleConfig, naming_section
from megatron_atesd.distill.step import distill_step
from megatron_atesd.distill.teacher import Teacher
from megatron_atesd.errors import ConfigError
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.gpt import build_model
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.rollout.training_engine import TrainingEngine
from megatron_atesd.train.optimizer import build_optimization, optimizer_settings
from tests.support.distill_case import DIVERGENCE, examples

ARCH = Architecture("qwen3", 16, 24, 2, 2, 1, 8, 37, 64, 1e4, 1e-6, tied=False, qk_norm=True)
SECTIONS: dict[str, type] = {"megatron": TransformerConfig, "optimizer": OptimizerConfig, "ddp": DistributedDataParallelConfig}


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    with parallel_session(seed=3):
        yield


def values(hint: Any, default: Any) -> list[Any]:
    """Some that YAML can spell, of the type and, where it cannot spell that, of others."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if get_args(hint) and get_origin(hint) not in (list, tuple, dict, Callable):
        return [value for option in get_args(hint) if option is not type(None) for value in values(option, default)]
    known: dict[Any, list[Any]] = {bool: [not default], int: [1, 2, 0, -1], float: [0.5, 0.0, -1.0], str: ["x"]}
    known |= {kind: [[1], ["x"], []] for kind in (list, tuple)}
    return known.get(get_origin(hint) or hint, ["x", 1, True, [1], {"a": 1}])


def use(section: str, user: dict[str, Any]) -> None:
    """All that a run does with these settings: the model, a response, an update."""
    megatron, optimizer, ddp = (user if name == section else {} for name in SECTIONS)
    settings = transformer_config(ARCH, 1, 1, False, "fp32", megatron)
    optimizer_settings(torch.float32, optimizer, ddp, ScheduleConfig())
    with naming_section("megatron", megatron):
        model = build_model(ARCH, settings)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    (response,) = TrainingEngine(model, [3]).generate([[1, 2]], [1], RolloutConfig(max_new_tokens=2))
    assert response.ids
    optimization = build_optimization(model, optimizer, ddp, ScheduleConfig(), 2)
    optimization.zero_grad()
    distill_step(optimization.wrapped, model, Teacher(model, "live", 0.9), examples(37)[:1], DIVERGENCE, micro_batch_tokens=64)
    optimization.step()


def refusal(section: str, user: dict[str, Any]) -> str | None:
    try:
        use(section, user)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("section", "name"), [(section, f.name) for section, cls in SECTIONS.items() for f in fields(cls) if f.init])
@pytest.mark.usefixtures("session")
def test_a_field_is_refused_in_one_line_or_works(section: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some fields are folders that megatron.core writes to
    hint, default = get_type_hints(SECTIONS[section])[name], getattr(SECTIONS[section], name, None)
    for value in values(hint, default):
        said = refusal(section, {name: value})
        assert said is None or f"{section}.{name}" in said or f"section {section} ({name}: " in said
        assert "\n" not in (said or "")
