"""What is worth saying once a job."""

import os
import sys
from functools import cache


@cache
def warn_once(text: str) -> None:
    """Print a warning on rank 0's stderr, whatever the number of ranks and of calls with this text."""
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {text}", file=sys.stderr, flush=True)
