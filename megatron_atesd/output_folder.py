"""Whether results can be written to a folder, asked before the work whose results they are."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from megatron_atesd.errors import ConfigError


def make_writable(setting: str, folder: Path) -> None:
    """Make the folder of the results. Raises ConfigError under the name `setting` when it cannot be made, or no file be written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"{setting} is {folder}, which cannot be written to ({error.strerror}); give a folder to write to") from None


def check_writable(setting: str, folder: Path) -> None:
    """As `make_writable`, but leaves nothing behind: for one process, when more can still be refused."""
    new = [path for path in (folder, *folder.parents) if not os.path.exists(path)]  # Path.exists raises in a folder closed to us
    try:
        make_writable(setting, folder)
    finally:
        for path in new:
            with suppress(OSError):
                path.rmdir()
