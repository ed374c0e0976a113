"""New files, written in slices and hashed on the way."""

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any


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
