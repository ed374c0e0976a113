"""Errors that a user can mend. Every command turns one into a single line on stderr and exit code 2."""


class AtesdError(Exception):
    """Base of all user-facing errors; the message names the value, the rule and the remedy."""


class ConfigError(AtesdError):
    """A setting is unknown, of the wrong type, or contradicts another setting or the machine."""


class DataError(AtesdError):
    """A problem file or a problem in it cannot be used."""


class CheckpointError(AtesdError):
    """A checkpoint or model folder is missing, incomplete or does not fit the configuration."""


class ConversionError(AtesdError):
    """A Hugging Face model cannot be represented in Megatron, or the other way round."""
