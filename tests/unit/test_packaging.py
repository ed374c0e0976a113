"""What is installed: the lock lies within the declared bounds, and the wheel holds every package of this project and no other."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from setuptools import find_packages

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()
LOCKS = sorted((ROOT / "requirements").glob("py*.txt"))


def locked(lock: Path) -> dict[str, str]:
    """Version by package."""
    lines = [line for line in lock.read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def installed_by_setup() -> list[Requirement]:
    """Direct dependencies; torch comes from the Makefile."""
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    names = [*project["dependencies"], *extras["dev"], *extras["data"], *extras["plots"]]
    return [requirement for requirement in map(Requirement, names) if requirement.name != "torch"]


def pythons() -> list[str]:
    """The minor versions that pyproject.toml admits: 3.11 and so on."""
    return list(SpecifierSet(PROJECT["project"]["requires-python"]).filter(f"3.{minor}" for minor in range(100)))


def test_there_is_a_lock_for_every_python() -> None:
    assert [lock.stem for lock in LOCKS] == [f"py{python.replace('.', '')}" for python in pythons()]


def test_make_takes_every_python() -> None:
    (bounds,) = re.findall(r"\((\d+), (\d+)\) <= sys\.version_info\[:2\] < \((\d+), (\d+)\)", MAKEFILE)
    assert SpecifierSet(">={}.{},<{}.{}".format(*bounds)) == SpecifierSet(PROJECT["project"]["requires-python"])


def test_make_looks_for_every_python() -> None:
    assert f"for p in {' '.join(f'python{python}' for python in pythons())} python3;" in MAKEFILE


def test_make_names_every_python_when_it_refuses_one() -> None:
    assert f"is not Python {', '.join(pythons()[:-1])} or {pythons()[-1]} with venv" in MAKEFILE


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_the_lock_lies_within_the_bounds(lock: Path) -> None:
    versions = locked(lock)
    assert [str(r) for r in installed_by_setup() if not r.specifier.contains(versions.get(canonicalize_name(r.name), "0"))] == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_the_lock_names_no_build_for_one_kind_of_machine(lock: Path) -> None:
    versions = locked(lock)
    assert [name for name in versions if name.startswith(("torch", "nvidia-", "cuda-", "triton"))] == []
    assert [version for version in versions.values() if "+" in version or "@" in version] == []


def test_the_wheel_holds_every_package_and_nothing_else() -> None:
    found = find_packages(str(ROOT), include=PROJECT["tool"]["setuptools"]["packages"]["find"]["include"])
    folders = {path.parent for room in ("megatron_atesd", "checkpoints_convert") for path in (ROOT / room).rglob("*.py")}
    assert sorted(found) == sorted(".".join(folder.relative_to(ROOT).parts) for folder in folders)
