"""Records that were downloaded once, kept as JSON lines beside a manifest with their checksum.

    <cache>/packages/sgl-eval-0.1.3/aime24.jsonl
    <cache>/packages/sgl-eval-0.1.3/aime24.jsonl.manifest.json    sha256, bytes, records, origin

The manifest is written last: records without one, or with another checksum, are downloaded anew and never used.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from megatron_atesd.data.json_values import json_value
from megatron_atesd.data.notice import warn
from megatron_atesd.errors import DataError
from megatron_atesd.paths import user_path


class Download(Protocol):
    """A set of records that can be had from elsewhere."""

    @property
    def place(self) -> str:
        """The file below the cache folder; its stem begins the ids of records that have none."""
        ...

    def fetch(self) -> tuple[str, Iterable[Mapping[str, Any]]]:
        """(origin, records). Raises DataError with what to do when they cannot be had."""
        ...


def default_cache() -> Path:
    """$XDG_CACHE_HOME/megatron_atesd, or ~/.cache/megatron_atesd. Raises ConfigError when no home directory is known."""
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "megatron_atesd"


def cached_records(download: Download, cache: Path) -> Path:
    """The JSONL file with the records, downloaded unless it is there whole. Raises DataError when neither is possible."""
    path = cache / download.place
    if is_whole(path):
        return path
    if path.exists():
        warn(f"{path} is incomplete or damaged (its checksum is not that of its manifest): it is downloaded anew")
    origin, records = download.fetch()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, origin, records)
    except OSError as error:
        raise DataError(f"the cache {path} cannot be written ({error.strerror}): choose another --cache") from None
    return path


def manifest_path(path: Path) -> Path:
    """Where the manifest of a file of records lies."""
    return path.with_name(f"{path.name}.manifest.json")


def read_manifest(path: Path) -> Mapping[str, Any]:
    """The manifest of a file of records; {} when there is none that can be read."""
    with suppress(OSError, ValueError):
        manifest = json.loads(manifest_path(path).read_bytes())
        if isinstance(manifest, dict):
            return manifest
    return {}


def is_whole(path: Path) -> bool:
    """Whether every byte of the file is as its manifest says."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == read_manifest(path).get("sha256")
    except OSError:
        return False


def _write(path: Path, origin: str, records: Iterable[Mapping[str, Any]]) -> None:
    """Records, then manifest, each under a name of its own until it is whole; so a process that is killed leaves no manifest."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    digest, size, count = hashlib.sha256(), 0, 0
    try:
        with partial.open("wb") as file:
            for record in records:
                line = json.dumps(json_value(record)).encode() + b"\n"
                digest.update(line)
                size, count = size + file.write(line), count + 1
        partial.replace(path)
        partial.write_text(json.dumps({"sha256": digest.hexdigest(), "bytes": size, "records": count, "origin": origin}) + "\n")
        partial.replace(manifest_path(path))
    finally:
        partial.unlink(missing_ok=True)
