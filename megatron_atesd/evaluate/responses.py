"""Responses on disk: one growing file a writing rank, of which a killed evaluation loses nothing, and in the end one file of all.

<out>/unfinished/rank_N.jsonl   a line a response, in the order in which they were finished
<out>/responses.jsonl           all of them, graded, by problem and sample
"""

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from megatron_atesd.errors import AtesdError, ConfigError
from megatron_atesd.records import Problem

UNFINISHED = "unfinished"
RESPONSES = "responses.jsonl"
LATE_SECONDS = 60.0  # network file systems show other nodes' files late

Key = tuple[int, int]  # (number of the problem, sample)


@dataclass(frozen=True)
class Answered:
    """One response to problem number `problem`; sample -1 is the greedy one.

    loop: whether it was cut while it repeated itself (`rollout.loops`); None where responses were made before this was kept.
    """

    problem: int
    sample: int
    text: str
    tokens: int
    truncated: bool
    loop: bool | None = None

    @property
    def key(self) -> Key:
        return self.problem, self.sample


class ResponseWriter:
    """Appends a rank's finished responses to its file; each is with the operating system when `write` returns."""

    def __init__(self, out: Path, rank: int, problems: Sequence[Problem]) -> None:
        """Raises ConfigError, as `write` does, when the file cannot be written."""
        self._path, self._problems = out / UNFINISHED / f"rank_{rank}.jsonl", problems
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+b", buffering=0)
            if self._file.tell() and (self._file.seek(-1, os.SEEK_END), self._file.read(1))[1] != b"\n":
                self._file.write(b"\n")  # a line that a kill cut off
        except OSError as error:
            raise self._refusal(error) from None

    def __enter__(self) -> "ResponseWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def write(self, answered: Answered) -> None:
        """Append one response."""
        try:
            line = line_of(answered, self._problems)
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise self._refusal(error) from None

    def _refusal(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"{self._path} cannot be written ({error.strerror}); mend that, then give the same command again, which goes on from here"
        )


class ResponseReader:
    """All responses in a folder, however many ranks wrote them; read on as the files grow. A line that is none is passed over."""

    def __init__(self, out: Path, problems: Sequence[Problem], samples: int, greedy: bool = True) -> None:
        """greedy: whether each problem has a greedy response besides."""
        self._out, self._problems, self._samples, self._greedy = out, problems, samples, greedy
        self._ends: dict[Path, int] = {}
        self.found: dict[Key, Answered] = {}

    @property
    def total(self) -> int:
        """How many there are in the end: of each problem K samples, and a greedy one if asked for."""
        return len(self._problems) * (self._samples + self._greedy)

    def read_on(self) -> list[Answered]:
        """Those that were not known yet."""
        new: list[Answered] = []
        for path in (self._out / RESPONSES, *sorted((self._out / UNFINISHED).glob("rank_*.jsonl"))):
            if path.exists():
                new += [a for line in self._new_lines(path) if (a := self._response(line)) is not None and self._is_new(a)]
        return new

    def read_all(self) -> list[Answered]:
        """All, by problem and sample, when no rank writes any more. Raises AtesdError where some are missing."""
        end = time.monotonic() + LATE_SECONDS
        self.read_on()
        while len(self.found) < self.total:
            if time.monotonic() > end:
                raise AtesdError(
                    f"{self.total - len(self.found)} of {self.total} responses are not in {self._out} as rank 0 sees it; is it on a file "
                    "system that all nodes share? The same command generates what is missing"
                )
            time.sleep(1.0)
            self.read_on()
        return [self.found[key] for key in sorted(self.found)]

    def _new_lines(self, path: Path) -> list[bytes]:
        """Whole lines only: the last may still be in the writing."""
        with path.open("rb") as file:
            file.seek(self._ends.get(path, 0))
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._ends[path] = self._ends.get(path, 0) + len(whole)
        return whole.split(b"\n")[:-1]

    def _response(self, line: bytes) -> Answered | None:
        try:
            values: Any = json.loads(line)
            found = Answered(**{name: values[name] for name in Answered.__dataclass_fields__ if name != "loop"}, loop=values.get("loop"))
            here = self._problems[found.problem].id == values["id"] and -1 <= found.sample < self._samples and found.problem >= 0
            typed = isinstance(found.text, str) and isinstance(found.tokens, int) and isinstance(found.truncated, bool)
            return found if here and typed and isinstance(found.loop, bool | None) else None
        except (ValueError, KeyError, IndexError, TypeError):
            return None

    def _is_new(self, answered: Answered) -> bool:
        return self.found.setdefault(answered.key, answered) is answered


def line_of(answered: Answered, problems: Sequence[Problem], **more: Any) -> bytes:
    """A response as a line of either file."""
    return (json.dumps({"id": problems[answered.problem].id, **asdict(answered), **more}, ensure_ascii=False) + "\n").encode()


def finish(out: Path, answered: Sequence[Answered], right: Sequence[bool], problems: Sequence[Problem], summary: dict[str, Any]) -> None:
    """Write responses.jsonl and evaluation.json, each whole or not at all, and remove the ranks' files."""
    lines = b"".join(line_of(a, problems, right=verdict) for a, verdict in zip(answered, right, strict=True))
    write_whole(out / RESPONSES, lines)
    write_whole(out / "evaluation.json", (json.dumps(summary, indent=2) + "\n").encode())
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)


def write_whole(path: Path, content: bytes) -> None:
    """The file has its name only when it is complete."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)
