"""What a command prints never ends it: a letter that cannot be shown is replaced, and what nobody reads any more is dropped."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class _DroppingFile(io.FileIO):
    """An open file that forgets what it cannot write: the pipe is closed, the disk is full, or the terminal is gone."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(memoryview(data).cast("B"))


@contextmanager
def forgiving_output() -> Iterator[None]:
    """Around a command: stdout and stderr that take any text, in whatever encoding they have, and that may be closed."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = forgiving = [_forgiving(stream) for stream in before]
    try:
        yield
    finally:
        for stream in forgiving:
            stream.flush()
        sys.stdout, sys.stderr = before


def _forgiving(stream: TextIO | None) -> TextIO:
    """The same stream, forgiving. One that is no file (a notebook's, a test's) is only told to replace letters."""
    if stream is None:  # the command was started with it closed
        return open(os.devnull, "w", encoding="utf-8", errors="replace")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    errors = stream.errors if stream.errors == "backslashreplace" else "replace"  # the former is how Python starts stderr
    try:
        file = _DroppingFile(stream.fileno(), "w", closefd=False)
    except OSError:
        stream.reconfigure(errors=errors)
        return stream
    with suppress(OSError):
        stream.flush()  # what was printed before comes first
    unbuffered = isinstance(stream.buffer, io.RawIOBase)  # python -u
    return io.TextIOWrapper(
        file if unbuffered else io.BufferedWriter(file),  # pyright: ignore[reportArgumentType]
        encoding=stream.encoding,
        errors=errors,
        newline="\n",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
