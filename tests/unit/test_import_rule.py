"""Imports go one way: settings and records, then data and exposure, then the model, then training, then the commands."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("megatron_atesd", "checkpoints_convert", "tools")

# The longest matching prefix counts. A file may import its own level and those below.
LEVELS = {
    "megatron_atesd": 0,  # config*, errors, records
    "megatron_atesd.data": 1,
    "megatron_atesd.exposure": 1,
    "megatron_atesd.distill.divergence": 1,
    "megatron_atesd.model": 2,
    "megatron_atesd.rollout": 2,
    "megatron_atesd.distill": 2,
    "megatron_atesd.train": 3,
    "megatron_atesd.evaluate": 3,
    "megatron_atesd.benchmark": 3,
    "megatron_atesd.faults": 3,
    "megatron_atesd.plan": 3,
    "checkpoints_convert": 3,
    "tools": 4,
}
WITHOUT_MEGATRON = {"megatron_atesd.distill.fused"}  # and all of levels 0 and 1


def level(module: str) -> int:
    return LEVELS[max((p for p in LEVELS if module == p or module.startswith(p + ".")), key=len)]


def is_ours(module: str) -> bool:
    return module.split(".")[0] in PACKAGES


def imports_of(source: str, package: str) -> set[str]:
    """Absolute dotted names that a file of `package` imports; `from a import b` counts as a and a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def broken_rules(module: str, imports: set[str]) -> Iterator[str]:
    """Each rule that `module` breaks, as `module imports name`."""
    for name in sorted(imports):
        upwards = is_ours(name) and level(name) > level(module)
        megatron = name.split(".")[0] == "megatron" and (level(module) <= 1 or module in WITHOUT_MEGATRON)
        frozen_out = name.startswith(("megatron.training", "megatron.legacy"))
        exposure = module.startswith("megatron_atesd.exposure.") and module != "megatron_atesd.exposure.service"
        if upwards or megatron or frozen_out or (exposure and name.startswith("torch.distributed")):
            yield f"{module} imports {name}"


def modules() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def package_of(module: str, path: Path) -> str:
    return module if path.name == "__init__.py" else module.rpartition(".")[0]


def test_imports_go_one_way():
    broken = [rule for module, path in modules() for rule in broken_rules(module, imports_of(path.read_text(), package_of(module, path)))]
    assert broken == []


def test_every_module_has_a_level():
    rooms = {path.name for path in (ROOT / "megatron_atesd").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert {f"megatron_atesd.{room}" for room in rooms} <= set(LEVELS)


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
        ("megatron_atesd.distill.divergence", "from megatron_atesd.distill import fused"),
        ("megatron_atesd.distill.fused", "import megatron.core"),
        ("megatron_atesd.rollout.generate", "def f():\n    import megatron_atesd.train.loop"),
        ("megatron_atesd.train.loop", "from megatron.training import get_args"),
        ("checkpoints_convert.table", "import tools.train"),
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
        ("megatron_atesd.train.loop", "from checkpoints_convert import table"),
        ("tools.train", "from megatron_atesd.train.loop import train"),
    ],
)
def test_an_allowed_import_passes(module: str, source: str):
    assert list(broken_rules(module, imports_of(source, module.rpartition(".")[0]))) == []
