"""Checksums of a folder in one file beside its contents, SHA256SUMS, which `sha256sum -c SHA256SUMS` checks as well.

Every bit of the folder is covered: the lines are read strictly, so a change in the list itself does not pass either.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from megatron_atesd.errors import CheckpointError

MANIFEST = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)\n")


def listed_files(folder: Path) -> list[str]:
    """Every file of `folder` except the list, relative to it, in one order for all."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def checksums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of each named file, hexadecimal. Raises OSError for a file that cannot be read."""
    found = {}
    for name in names:
        with (folder / name).open("rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def write_manifest(folder: Path, sums: dict[str, str]) -> None:
    """Write the list; `sums` covers every file of `folder`, see `checksums`. Raises CheckpointError for a name that has no line."""
    for name in sums:
        if "\n" in name:
            raise CheckpointError(f"{folder}: a file name holds a line break ({name!r}); rename the file in the model's folder")
    (folder / MANIFEST).write_text("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)), encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, str]:
    """Checksums by file, once exactly the listed files are there.

    Raises CheckpointError naming the file that is missing or too many, or the line that cannot be read.
    """
    path = folder / MANIFEST
    try:
        lines = re.findall(r"[^\n]*\n|[^\n]+", path.read_bytes().decode("utf-8"))  # a name may hold what splitlines takes for an end
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}): the folder is incomplete or damaged; use another checkpoint") from None
    sums = {}
    for number, line in enumerate(lines, 1):
        if not (match := _LINE.fullmatch(line)):
            raise CheckpointError(f"{path}: line {number} is damaged; use another checkpoint")
        sums[match[2]] = match[1]
    there = set(listed_files(folder))
    for name in sorted(sums.keys() ^ there):
        if name not in sums:
            raise CheckpointError(f"{folder}: {name} is not listed in {MANIFEST}; move it elsewhere, or use another checkpoint")
        raise CheckpointError(f"{folder}: {name} is missing: the folder is incomplete; use another checkpoint")
    return sums


def check_files(folder: Path, sums: dict[str, str]) -> None:
    """Read the files named in `sums` (all of `read_manifest`, or a rank's share). Raises CheckpointError naming the first that differs."""
    for name, expected in sums.items():
        try:
            found = checksums(folder, [name])[name]
        except OSError as error:
            raise CheckpointError(f"{folder / name}: cannot be read ({error}); use another checkpoint") from None
        if found != expected:
            raise CheckpointError(f"{folder / name}: its checksum differs from {MANIFEST}: the file is damaged; use another checkpoint")
