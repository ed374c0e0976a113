"""`pytest --record-tested`: a whole run without a failure writes its row of requirements/tested.json.

Anything less writes nothing and says why. What can be known at the start is refused there, before an hour of tests. Tests that hold other
files against the rows are left out of such a run, since they could not pass before its row is written.
"""

import json
import platform
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from megatron_atesd.report.tested_versions import RecordedRun, read_runs, with_run

FILE = "requirements/tested.json"
# Option of pytest by the name of its value.
SELECTIONS = {
    "keyword": "-k",
    "lf": "--lf",
    "stepwise": "--sw",
    "stepwise_skip": "--sw-skip",
    "deselect": "--deselect",
    "ignore": "--ignore",
    "ignore_glob": "--ignore-glob",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-tested", action="store_true", help=f"a whole run without a failure writes its row of {FILE}")


def pytest_configure(config: pytest.Config) -> None:
    is_worker = hasattr(config, "workerinput")
    if config.getoption("record_tested") and not is_worker:
        config.pluginmanager.register(Recorder(config))


class Recorder:
    """Writes the row at the end of the run. Raises UsageError at its start for a part of the tests, and for changed files."""

    def __init__(self, config: pytest.Config) -> None:
        self.root = config.rootpath
        self.begin = time.monotonic()
        self.verdict = ""
        self.commit = commit(self.root)
        chosen, changed = selections(config), changed_files(self.root)
        if chosen:
            raise pytest.UsageError(f"--record-tested wants the whole suite, without {', '.join(chosen)}")
        if changed:
            raise pytest.UsageError(f"--record-tested wants the files of a commit, but these differ from it: {', '.join(changed)}")

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        assert reporter is not None
        passed, skipped = (len(reporter.stats.get(outcome, [])) for outcome in ("passed", "skipped"))
        why_not = self.why_not(exitstatus, passed)
        if why_not:
            self.verdict = f"Not recorded: {why_not}"
            session.exitstatus = exitstatus or 1
            return
        path = self.root / FILE
        rows = with_run(read_runs(path), self.row(passed, skipped))
        path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        self.verdict = f"Recorded in {path}. Now: python tools/make_docs.py"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.write_line(self.verdict)

    def why_not(self, exitstatus: int, passed: int) -> str:
        if exitstatus != 0:
            return f"the run ended with exit code {int(exitstatus)}"
        if not passed:
            return "no test passed"
        if commit(self.root) != self.commit or changed_files(self.root):
            return "files changed during the run"
        return ""

    def row(self, passed: int, skipped: int) -> RecordedRun:
        # Not from pip's metadata: megatron.core may come from PYTHONPATH.
        import megatron.core
        import torch
        import transformers

        return {
            "python": platform.python_version(),
            "megatron_core": megatron.core.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "passed": passed,
            "skipped": skipped,
            "minutes": round((time.monotonic() - self.begin) / 60),
            "date": datetime.now(UTC).date().isoformat(),
            "commit": self.commit,
        }


def selections(config: pytest.Config) -> list[str]:
    """The options and paths that leave tests out."""
    found = [option for name, option in SELECTIONS.items() if config.getoption(name, None)]
    if config.option.markexpr not in ("", "not gpu"):
        found.append(f"-m '{config.option.markexpr}'")
    whole = {config.rootpath / path for path in config.getini("testpaths")}
    asked = {(config.invocation_params.dir / path).resolve() for path in config.args}
    return found if asked == whole else [*found, *config.args]


def commit(root: Path) -> str:
    return git(root, "rev-parse", "--short=7", "HEAD").strip()


def changed_files(root: Path) -> list[str]:
    """Files that differ from the commit, or are neither in it nor ignored, but for the one that a run before this one wrote."""
    lines = git(root, "status", "--porcelain", "--", ".", f":!{FILE}").splitlines()
    return [line[3:] for line in lines]


def git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise pytest.UsageError(f"--record-tested wants a git checkout: {done.stderr.strip()}")
    return done.stdout
