"""What is worth saying once a job: every rank reads the same files, and the first one speaks."""

import os
import sys
from functools import cache


def warn(text: str) -> None:
    """Print a warning on rank 0's stderr, also before there are process groups."""
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {text}", file=sys.stderr, flush=True)


@cache
def warn_once(text: str) -> None:
    """The same, whatever the number of calls with this text."""
    warn(text)
