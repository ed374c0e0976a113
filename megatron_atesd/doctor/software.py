"""What is installed: versions within the bounds of pyproject.toml, and whose apex it is."""

from collections.abc import Mapping, Sequence
from importlib import metadata

from packaging.requirements import Requirement

from megatron_atesd.doctor.finding import Finding
from megatron_atesd.model.apex import Apex, find_apex

PROJECT = "megatron-atesd"


def check_installation() -> list[Finding]:
    """Findings about the packages of this process."""
    try:
        bounds = [r for r in map(Requirement, metadata.requires(PROJECT) or ()) if r.marker is None or r.marker.evaluate({"extra": ""})]
    except metadata.PackageNotFoundError:
        return [
            Finding("warning", "versions", f"{PROJECT} is not installed, so its bounds are not known", "pip install -e . in its checkout")
        ]
    return check_versions(bounds, installed_versions(bounds)) + check_apex(find_apex())


def installed_versions(requirements: Sequence[Requirement]) -> dict[str, str]:
    """Version of each required package that is installed."""
    found = {}
    for requirement in requirements:
        try:
            found[requirement.name] = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            continue
    return found


def check_versions(requirements: Sequence[Requirement], installed: Mapping[str, str]) -> list[Finding]:
    """An error for a package that is missing or too old, a warning for one newer than what was tried."""
    findings = []
    for requirement in requirements:
        version = installed.get(requirement.name)
        remedy = f'pip install "{requirement.name}{requirement.specifier}"'
        if version is None:
            findings.append(Finding("error", "versions", f"{requirement.name} is not installed", remedy))
        elif not requirement.specifier.contains(version, prereleases=True):
            lower = [bound for bound in requirement.specifier if bound.operator == ">="]
            too_old = not all(bound.contains(version, prereleases=True) for bound in lower)
            what = f"{requirement.name} is {version}, {'older' if too_old else 'newer'} than what this project was tried with"
            findings.append(Finding("error" if too_old else "warning", "versions", what, remedy))
    main = {name: installed[name] for name in ("torch", "megatron-core", "transformers") if name in installed}
    return [*findings, Finding("information", "versions", ", ".join(f"{name} {version}" for name, version in main.items()))]


def check_apex(apex: Apex) -> list[Finding]:
    """A warning for an apex that is not NVIDIA's (the package index has a web toolkit of that name) or lacks its compiled part."""
    if not apex.folders:
        return []
    if not apex.nvidias:
        what = f"apex in {apex.folders[0]} is not NVIDIA's but a web toolkit"
        return [Finding("warning", "apex", what, "pip uninstall apex; NVIDIA's is built from source, and not needed")]
    if not apex.kernels:
        what = f"apex in {apex.folders[0]} was built without its CUDA kernels (no amp_C)"
        return [Finding("warning", "apex", what, "build it with its CUDA extensions, or pip uninstall apex: it is not needed")]
    fusion = "with" if apex.gradients else "without"
    return [Finding("information", "apex", f"NVIDIA's, with its kernels, {fusion} fused gradient accumulation")]
