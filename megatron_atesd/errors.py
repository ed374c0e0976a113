"""Errors that a user can mend. Every command turns one into a single line on stderr and exit code 2."""

import sys
from collections.abc import Callable

from megatron_atesd.console import forgiving_output


class AtesdError(Exception):
    """Base of all user-facing errors; the message names the value, the rule and the remedy."""


class ConfigError(AtesdError):
    """A setting is unknown, of the wrong type, or contradicts another setting or the machine."""


class DataError(AtesdError):
    """A problem file or a problem in it cannot be used."""


class CheckpointError(AtesdError):
    """A checkpoint or model folder is missing, incomplete or does not fit the configuration."""


class TrainingError(AtesdError):
    """Training cannot go on: its numbers are no longer finite."""


class ConversionError(AtesdError):
    """A Hugging Face model cannot be represented in Megatron, or the other way round."""


def run_command(main: Callable[[], None]) -> None:
    """Run a command's main function; an AtesdError becomes one `error: …` line on stderr and exit code 2.

    What it prints cannot end it, see `forgiving_output`.
    """
    with forgiving_output():
        try:
            main()
        except AtesdError as error:
            print("error: " + " ".join(str(error).split()), file=sys.stderr)
            raise SystemExit(2) from None
