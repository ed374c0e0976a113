"""Paths as people write them: `~` is the home directory, also where no shell reads the words first (YAML, `--out=~/x`)."""

import os
from pathlib import Path

from megatron_atesd.errors import ConfigError


def with_home(text: str) -> str:
    """`text` with a leading `~` or `~user` written out. Raises ConfigError when that home directory is not known."""
    written_out = os.path.expanduser(text)
    if written_out.startswith("~"):
        raise ConfigError(f"{text} begins with a home directory that is not known here; write the path out, or begin with ./~")
    return written_out


def user_path(text: str) -> Path:
    """The path that a person means by `text`, for options of commands. Raises ConfigError as `with_home`."""
    return Path(with_home(text))
