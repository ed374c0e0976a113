"""What is worth saying once a job: every rank reads the same files, and the first one speaks."""

import os
from functools import cache

from megatron_atesd.logs import warn_here


def warn(text: str) -> None:
    """A warning, `WHAT: WHAT TO DO`, on rank 0's stderr, also before there are process groups."""
    if os.environ.get("RANK", "0") == "0":
        warn_here(text)


@cache
def warn_once(text: str) -> None:
    """The same, whatever the number of calls with this text."""
    warn(text)
