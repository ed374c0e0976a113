"""Where a conversion writes: a folder beside the target that takes its name only when everything is finished, checks included."""

import hashlib
import io
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from megatron_atesd.errors import ConversionError
from megatron_atesd.folders import replace_folder, sync_tree


def check_output(out: Path, source: Path, force: bool) -> None:
    """Refuse, before any work, an output that would overwrite something: raises ConversionError."""
    target, origin = (Path(os.path.realpath(path)) for path in (out, source))  # resolve() raises for a link round in a circle
    if target == origin or target in origin.parents or origin in target.parents:
        raise ConversionError(f"--out {out} and the model in {source} lie in one another; choose another folder")
    if out.exists() and not out.is_dir():
        raise ConversionError(f"--out {out} is a file; choose a folder")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise ConversionError(f"--out {out} is not empty; choose another folder, or replace it with --force")


@contextmanager
def finished_folder(out: Path) -> Iterator[Path]:
    """A name, in `out`.unfinished, to write a folder under; it takes the place of `out` if the block ends well, else it is removed."""
    unfinished = out.with_name(out.name + ".unfinished")
    staging = unfinished / out.name
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        yield staging
        sync_tree(staging)
        replace_folder(staging, out)
    except (OSError, SafetensorError) as error:
        raise ConversionError(f"{out} cannot be written: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


class SlicedFile(io.BufferedWriter):
    """A new file. Large writes reach it in slices: Linux may need several times as long for one write of many megabytes."""

    SLICE_BYTES = 2**20

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(io.FileIO(path, "w"))

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), self.SLICE_BYTES):
            super().write(view[start : start + self.SLICE_BYTES])
        return len(view)


class HashedFile(SlicedFile):
    """A new file whose SHA-256 is known when it is written; it may only be written from start to end."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self.sha256 = hashlib.sha256()
        self._pool = ThreadPoolExecutor(1)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if len(view) < self.SLICE_BYTES:
            self.sha256.update(view)
            return super().write(view)
        hashing = self._pool.submit(self.sha256.update, view)  # beside the writing: neither holds the interpreter's lock
        count = super().write(view)
        hashing.result()
        return count

    def close(self) -> None:
        self._pool.shutdown()
        super().close()


def say(message: str) -> None:
    """Progress for the user, on stderr."""
    print(message, file=sys.stderr, flush=True)
