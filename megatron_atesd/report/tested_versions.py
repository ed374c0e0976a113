"""The table of tested versions in README.md: a row for each run of the tests that requirements/tested.json records.

python -m pytest --record-tested    # writes a row of the file
python tools/make_docs.py           # writes the table
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypedDict

from packaging.version import Version

BEGIN, END = "<!-- tested -->\n", "<!-- /tested -->"
HEAD = ("Python", "megatron-core", "torch", "transformers", "tests passed (skipped)", "minutes", "date (commit)")
NOTHING = "No run is recorded yet."


class RecordedRun(TypedDict):
    """A whole run of the tests without a failure."""

    python: str
    megatron_core: str
    torch: str
    transformers: str
    passed: int
    skipped: int
    minutes: int
    date: str
    commit: str


def read_runs(path: Path) -> list[RecordedRun]:
    """The rows of tested.json; none where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def with_run(runs: Iterable[RecordedRun], new: RecordedRun) -> list[RecordedRun]:
    """`runs` and `new`, sorted; `new` takes the place of a run of the same Python (without its last number) and megatron-core."""
    return sorted([*(run for run in runs if place(run) != place(new)), new], key=place)


def place(run: RecordedRun) -> tuple[tuple[int, ...], Version]:
    """What a run is known by, and sorted by: (3, 12), 0.19.2."""
    return Version(run["python"]).release[:2], Version(run["megatron_core"])


def with_table(text: str, runs: Sequence[RecordedRun]) -> str:
    """`text` with the table of `runs` between the two comments; ValueError where they are not both there."""
    begin = text.index(BEGIN) + len(BEGIN)
    return text[:begin] + (_table(runs) if runs else NOTHING) + "\n" + text[text.index(END, begin) :]


def _table(runs: Iterable[RecordedRun]) -> str:
    rows = [" | ".join(HEAD), *(" | ".join(_cells(run)) for run in runs)]
    lines = [f"| {row} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(HEAD) + "|", *lines[1:]])


def _cells(run: RecordedRun) -> tuple[str, ...]:
    return (
        run["python"],
        run["megatron_core"],
        run["torch"],
        run["transformers"],
        f"{run['passed']:,} ({run['skipped']:,})",
        str(run["minutes"]),
        f"{run['date']} ({run['commit']})",
    )
