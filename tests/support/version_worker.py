"""The process of one version of megatron.core: runs functions that come through its standard input, and answers through its output."""

import json
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path


def serve() -> None:
    """Until the input ends: a line of JSON names a module, a function of it and paths for it, one answers with '' or a traceback.

    No pickle: a Path of Python 3.13 cannot be read before.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed is no answer
    for line in sys.stdin:
        module, function, paths = json.loads(line)
        try:
            getattr(import_module(module), function)(*map(Path, paths))
            error = ""
        except Exception:
            error = traceback.format_exc()
        print(json.dumps(error), file=answers, flush=True)


if __name__ == "__main__":
    serve()
