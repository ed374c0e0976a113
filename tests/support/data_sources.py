"""Small stand-ins for the packages and data sets that problems are downloaded from, in the same form as the real ones."""

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_atesd.data.sources.package import PackageFile, json_lines

NAME, VERSION, MEMBER = "toy-sums", "1.2.3", "toy_sums/sums/test.txt"
ROWS = [
    {"id": "sum-0", "problem": "What is $1+1$?", "expected_answer": "2", "reference_solution": "Count: $1+1=\\boxed{2}$."},
    {"id": "sum-1", "problem": "What is $2+2$?", "expected_answer": "4", "reference_solution": ""},
]
CONTENT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
_INFO = f"toy_sums-{VERSION}.dist-info"


def package_file(content: bytes = CONTENT) -> PackageFile:
    """The file of the toy package, known by its `content`."""
    return PackageFile(NAME, VERSION, MEMBER, len(content), hashlib.sha256(content).hexdigest(), "sums", json_lines)


def package_files(content: bytes = CONTENT) -> dict[str, bytes]:
    """What a wheel of the toy package holds. Importing it fails."""
    metadata = f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\nRequires-Dist: no-such-thing-{VERSION}\n"
    return {
        "toy_sums/__init__.py": b"raise SystemExit('the package was imported')\n",
        MEMBER: content,
        f"{_INFO}/METADATA": metadata.encode(),
        f"{_INFO}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{_INFO}/RECORD": b"",
    }


def save_wheel(folder: Path, files: Mapping[str, bytes]) -> Path:
    """The toy package's wheel in `folder`."""
    folder.mkdir(exist_ok=True)
    path = folder / f"toy_sums-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def install(folder: Path, files: Mapping[str, bytes]) -> None:
    """The same as an installed package below `folder`, which the caller puts on sys.path."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


class Kept:
    """A `Download` that counts how often it was asked for, and fails after `until` records if that is given."""

    place = "kept/toy.jsonl"

    def __init__(self, rows: Sequence[Mapping[str, Any]] = ROWS, until: int | None = None) -> None:
        self.rows, self.until, self.fetched = rows, until, 0

    def fetch(self) -> tuple[str, Any]:
        self.fetched += 1
        return "toy", self._records()

    def _records(self) -> Any:
        for number, row in enumerate(self.rows):
            if number == self.until:
                raise KeyboardInterrupt
            yield row
