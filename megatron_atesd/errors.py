"""Errors that a user can mend. Every command turns one into a single line on stderr and exit code 2."""

import sys
from collections.abc import Callable

from megatron_atesd.console import forgiving_output
from megatron_atesd.logs import LEVELS, OPTION, labelled, speaking_at, take_log_level


class AtesdError(Exception):
    """Base of all user-facing errors; the message names the value, the rule and the remedy."""


class ConfigError(AtesdError):
    """A setting is unknown, of the wrong type, or contradicts another setting or the machine."""


class DataError(AtesdError):
    """A problem file or a problem in it cannot be used."""


class CheckpointError(AtesdError):
    """A checkpoint or model folder is missing, incomplete or does not fit the configuration."""


class TrainingError(AtesdError):
    """Training does not go on: its numbers are no longer finite, or an alarm of health.stop_on has gone off."""


class ConversionError(AtesdError):
    """A Hugging Face model cannot be represented in Megatron, or the other way round."""


def run_command(main: Callable[[], None]) -> None:
    """Run a command's main function; an AtesdError becomes one `error: …` line on stderr and exit code 2.

    What it prints cannot end it, see `forgiving_output`. `--log-level` is taken from the command line, see logs.py.
    """
    with forgiving_output():
        try:
            with speaking_at(_log_level()):
                main()
        except AtesdError as error:
            print(labelled("error", " ".join(str(error).split())), file=sys.stderr)
            raise SystemExit(2) from None


def _log_level() -> str:
    level = take_log_level(sys.argv)
    if level not in LEVELS:
        raise ConfigError(f"{OPTION} is {level!r}, must be one of {', '.join(LEVELS)}")
    return level
