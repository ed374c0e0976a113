"""The report of a training that has come to its end."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

REPORT = "report.html"


def report_at_end(run_dir: Path, tell: Callable[[str], None]) -> None:
    """Write <run_dir>/report.html and say where it is, or why it is not there: a report is not worth a training."""
    if importlib.util.find_spec("matplotlib") is None:
        tell(f"no {REPORT}: it needs matplotlib (pip install -e '.[plots]' in this project's checkout), then tools/report.py {run_dir}")
        return
    try:
        from megatron_atesd.report.page import write_report

        write_report({run_dir.resolve().name: run_dir}, run_dir / REPORT)
    except Exception as error:
        tell(f"warning: {run_dir / REPORT} could not be written ({type(error).__name__}: {error}); the training is not touched by it")
        return
    tell(f"report: {run_dir / REPORT}")
