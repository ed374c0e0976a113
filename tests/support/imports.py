"""What a file of this project imports, read from its source."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "megatron_atesd": ROOT,
    "checkpoints_convert": ROOT,
    "benchmarks": ROOT / "tools",
    "tools": ROOT,
}  # and the folder that each lies in


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
