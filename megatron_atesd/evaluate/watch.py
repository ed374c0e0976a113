"""While responses are generated: how many are there, how fast they come, when they will be done, and how many are right so far."""

import sys
import threading
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from types import TracebackType

from megatron_atesd.evaluate.grading import Grader
from megatron_atesd.evaluate.responses import Answered, Key, ResponseReader
from megatron_atesd.logs import is_told
from megatron_atesd.records import Problem

LOOK_SECONDS = 1.0  # between two looks at the folder
LINE_SECONDS = 30.0  # between two lines where stderr is no terminal


class Watch:
    """Reads on in the folder in a thread of its own, grades what it finds and says so on stderr; on rank 0, of all ranks' responses.

    `right`: the verdict on each response graded so far.
    """

    def __init__(self, reader: ResponseReader, grader: Grader, problems: Sequence[Problem], together: int, opening: str = "") -> None:
        """together: answers that are graded at one time, before the next word on progress. opening: `PromptRenderer.opening`."""
        self.right: dict[Key, bool] = {}
        self._reader, self._grader, self._problems, self._together, self._opening = reader, grader, problems, together, opening
        self._pending: list[Answered] = list(reader.found.values())
        self._start, self._before = time.monotonic(), amount(self._pending)
        self._terminal, self._said, self._width = sys.stderr.isatty(), self._start, 0
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="evaluation-watch", daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def verdicts(self, answered: Sequence[Answered]) -> list[bool]:
        """Of each of all responses, in order, after the watch: what is not graded yet is graded now. Raises what ended the thread."""
        if self._error is not None:
            raise self._error
        self._take([a for a in answered if a.key not in self.right])
        self._say(last=True)
        return [self.right[a.key] for a in answered]

    def _run(self) -> None:
        try:
            looked = 0.0
            while not self._stop.wait(0.0 if self._pending else LOOK_SECONDS):
                if (now := time.monotonic()) - looked >= LOOK_SECONDS:
                    looked = now
                    self._pending += self._reader.read_on()
                part, self._pending = self._pending[: self._together], self._pending[self._together :]
                self._take(part)
                self._say()
        except Exception as error:
            self._error = error

    def _take(self, part: Sequence[Answered]) -> None:
        verdicts = self._grader.grade([(self._opening + a.text, self._problems[a.problem].answer) for a in part])
        self.right.update({a.key: verdict for a, verdict in zip(part, verdicts, strict=True)})

    def _say(self, last: bool = False) -> None:
        now = time.monotonic()
        if not is_told() or (not last and now - self._said < (LOOK_SECONDS if self._terminal else LINE_SECONDS)):
            return
        self._said = now
        now_there = amount(self._reader.found.values())
        text = progress_text(now_there, self._before, self._reader.total, now - self._start, list(self.right.values()))
        start, end = ("\r", "\n" if last else "") if self._terminal else ("", "\n")
        print(f"{start}{text.ljust(self._width)}", end=end, file=sys.stderr, flush=True)
        self._width = len(text) if self._terminal else 0


def amount(answered: Iterable[Answered]) -> tuple[int, int]:
    """(responses, tokens)."""
    tokens = [a.tokens for a in answered]
    return len(tokens), sum(tokens)


def progress_text(there: tuple[int, int], before: tuple[int, int], total: int, seconds: float, right: Sequence[bool]) -> str:
    """The line of progress. there, before: `amount` now and when this process began, `seconds` ago; right: verdicts so far.

    Tokens count when their response is finished. The time left is what the rest takes at as many responses a second.
    """
    done, made = there[0], there[0] - before[0]
    words = [f"{done:,}/{total:,} responses"]
    if made:
        left = timedelta(seconds=round((total - done) * seconds / made))
        words += [f"{(there[1] - before[1]) / seconds:,.0f} tokens/s", *([f"about {left} left"] if done < total else [])]
    if right:
        words.append(f"{100 * sum(right) / len(right):.1f} % right of {len(right):,} graded")
    return ", ".join(words)
