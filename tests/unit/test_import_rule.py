"""Imports go one way: every room has its own level, and imports only rooms below it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.imports import PACKAGES, ROOT, imports_of, is_ours

# Lowest first; a room imports those before it, so no two import each other. The longest matching prefix counts.
ORDER = (
    "megatron_atesd",  # errors, records, console, paths, output_folder
    "megatron_atesd.config",
    "megatron_atesd.data",
    "megatron_atesd.report",
    "megatron_atesd.parallel",
    "megatron_atesd.exposure",
    "megatron_atesd.model",
    "megatron_atesd.distill",
    "megatron_atesd.checkpoint",
    "megatron_atesd.rollout",
    "megatron_atesd.doctor",
    "megatron_atesd.evaluate",
    "megatron_atesd.train",
    "megatron_atesd.plan",
    "megatron_atesd.study",
    "megatron_atesd.faults",
    "checkpoints_convert",
    "benchmarks",  # tools/benchmarks
    "tools",
)
LEVELS = {room: level for level, room in enumerate(ORDER)}
WITHOUT_MEGATRON = (
    "megatron_atesd.config",
    "megatron_atesd.data",
    "megatron_atesd.report",
    "megatron_atesd.exposure",
    "megatron_atesd.distill.divergence",
    "megatron_atesd.distill.fused",
    "megatron_atesd.distill.softmax",
    "megatron_atesd.distill.terms",
    "megatron_atesd.distill.top_k",
)


def is_in(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def level(module: str) -> int:
    return LEVELS[max((room for room in LEVELS if is_in(module, room)), key=len)]


def broken_rules(module: str, imports: set[str]) -> Iterator[str]:
    """Each rule that `module` breaks, as `module imports name`."""
    for name in sorted(imports):
        upwards = is_ours(name) and level(name) > level(module)
        megatron = name.split(".")[0] == "megatron" and any(is_in(module, room) for room in WITHOUT_MEGATRON)
        frozen_out = name.startswith(("megatron.training", "megatron.legacy"))
        exposure = module.startswith("megatron_atesd.exposure.") and module != "megatron_atesd.exposure.service"
        if upwards or megatron or frozen_out or (exposure and name.startswith("torch.distributed")):
            yield f"{module} imports {name}"


def modules() -> Iterator[tuple[str, Path]]:
    for package, parent in PACKAGES.items():
        for path in sorted((parent / package).rglob("*.py")):
            if package == "tools" and "benchmarks" in path.parts:
                continue
            parts = path.relative_to(parent).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def package_of(module: str, path: Path) -> str:
    return module if path.name == "__init__.py" else module.rpartition(".")[0]


def test_imports_go_one_way():
    broken = [rule for module, path in modules() for rule in broken_rules(module, imports_of(path.read_text(), package_of(module, path)))]
    assert broken == []


def test_every_room_has_its_own_level():
    rooms = {path.name for path in (ROOT / "megatron_atesd").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert {f"megatron_atesd.{room}" for room in rooms} <= set(ORDER)


def test_no_file_is_named_after_nothing():
    assert [str(path) for _, path in modules() if path.stem in {"utils", "util", "helpers", "helper", "misc", "common"}] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("megatron_atesd.config", "from megatron_atesd.data.problems import read"),
        ("megatron_atesd.data.prompts", "from megatron_atesd import model"),
        ("megatron_atesd.exposure.reward", "import torch.distributed as dist"),
        ("megatron_atesd.exposure.modes", "from torch import distributed"),
        ("megatron_atesd.exposure.modes", "from ..model import qwen3"),
        ("megatron_atesd.distill.divergence", "from megatron.core import parallel_state"),
        ("megatron_atesd.train.loop", "from checkpoints_convert import stream"),
        ("megatron_atesd.evaluate.prepare", "from megatron_atesd.train import checks"),
        ("megatron_atesd.doctor.machine", "from megatron_atesd.train import checks"),
        ("megatron_atesd.distill.step", "from megatron_atesd.rollout import training_engine"),
        ("megatron_atesd.plan.memory", "from benchmarks import flops"),
        ("megatron_atesd.distill.fused", "import megatron.core"),
        ("megatron_atesd.rollout.training_engine", "def f():\n    import megatron_atesd.train.loop"),
        ("megatron_atesd.train.loop", "from megatron.training import get_args"),
        ("megatron_atesd.checkpoint.name_table", "import tools.train"),
    ],
)
def test_a_forbidden_import_is_seen(module: str, source: str):
    assert list(broken_rules(module, imports_of(source, module.rpartition(".")[0])))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("megatron_atesd.exposure.service", "import torch.distributed"),
        ("megatron_atesd.distill.step", "from megatron.core import parallel_state"),
        ("megatron_atesd.distill.step", "from .divergence import kl"),
        ("megatron_atesd.train.loop", "from megatron_atesd.checkpoint import layout"),
        ("checkpoints_convert.stream", "from megatron_atesd.checkpoint import layout"),
        ("benchmarks.update", "from megatron_atesd.plan import memory"),
        ("tools.train", "from megatron_atesd.train.loop import train"),
    ],
)
def test_an_allowed_import_passes(module: str, source: str):
    assert list(broken_rules(module, imports_of(source, module.rpartition(".")[0]))) == []
