r"""Grade responses: the last balanced `\boxed{…}` behind the thinking against the gold answer, safe from hostile answers.

    with Grader(workers=2, timeout_s=5.0) as grader:
        right = grader.grade([(response, problem.answer) for …])

What exact arithmetic decides within bounded work is decided here (`equivalence.fast_verdict`). Anything else goes to a pool of small
processes that hold sympy and nothing else (no torch, no model); one that exceeds the time limit is killed and replaced. docs/grading.md
says what counts as equal.
"""

import json
import os
import queue
import select
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Literal

from megatron_atesd.data.boxes import final_boxed
from megatron_atesd.errors import AtesdError, ConfigError
from megatron_atesd.evaluate.equivalence import READY, RIGHT, WRONG, fast_verdict

Pair = tuple[str, str]  # answer, gold
Verdict = Literal["right", "wrong", "timeout", "crash"]
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
_START_SECONDS = 120.0
_MEMORY_BYTES = 1 << 30


class _Worker:
    """One comparing process, started at its first question and again after it had to be killed."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, answer: str, gold: str) -> Verdict:
        """The verdict on one pair; a worker that is late or dies is gone afterwards."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        try:
            self._send(json.dumps([answer, gold]).encode() + b"\n")
            reply = self._receive(self._timeout_s)
        except BrokenPipeError:
            reply = b""
        if reply in (RIGHT, WRONG):
            return "right" if reply == RIGHT else "wrong"
        self.kill()
        return "timeout" if reply is None else "crash"

    def _start(self) -> None:
        self.kill()
        command = [sys.executable, "-m", "megatron_atesd.evaluate.equivalence", str(self._timeout_s), str(_MEMORY_BYTES)]
        paths = [_PACKAGE_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment)
        if self._receive(_START_SECONDS) != READY:
            self.kill()
            raise AtesdError("the grading process did not start: check that `python -c 'import sympy'` works in this environment")

    def _send(self, line: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(line)

    def _receive(self, seconds: float) -> bytes | None:
        """The next byte, b"" when the process has ended, None when `seconds` passed."""
        assert self._process is not None
        assert self._process.stdout is not None
        poll = select.poll()  # select() refuses descriptors above 1023, which a long training run has
        poll.register(self._process.stdout, select.POLLIN)
        return self._process.stdout.read(1) if poll.poll(max(1, round(1000 * seconds))) else None

    def kill(self) -> None:
        """End the process at once and reap it; safe to call twice."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None


class Grader:
    """Grades answers with `workers` processes and at most `timeout_s` seconds of wall time for one answer.

    timeouts: responses counted wrong because their answer took longer (or would have).
    crashes: responses counted wrong because their answer ended the process, for example by its memory limit of 1 GiB.
    Raises ConfigError for a worker count below 1 or a time limit that is not positive.
    """

    def __init__(self, workers: int, timeout_s: float) -> None:
        if workers < 1:
            raise ConfigError(f"--grading-workers is {workers}, must be 1 or more")
        if not 0 < timeout_s < float("inf"):
            raise ConfigError(f"--grading-seconds is {timeout_s}, must be greater than 0 and finite")
        self.timeouts = 0
        self.crashes = 0
        self._workers = [_Worker(timeout_s) for _ in range(workers)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.kill()

    def grade(self, items: Sequence[tuple[str, str]]) -> list[bool]:
        """Whether each (response text, gold answer) is right, in order; a response without a balanced box behind its thinking is wrong.

        Equal (answer, gold) pairs are decided once. Raises AtesdError when a worker cannot be started.
        """
        pairs = [(final_boxed(response) or "", gold) for response, gold in items]
        verdicts = self._verdicts(pairs)
        self.timeouts += sum(verdicts[pair] == "timeout" for pair in pairs)
        self.crashes += sum(verdicts[pair] == "crash" for pair in pairs)
        return [verdicts[pair] == "right" for pair in pairs]

    def same(self, pairs: Sequence[Pair]) -> list[bool]:
        """Whether the two answers of each pair mean the same, in order. Pairs that take too long do not, and are not counted as faults."""
        verdicts = self._verdicts(pairs)
        return [verdicts[pair] == "right" for pair in pairs]

    def _verdicts(self, pairs: Sequence[Pair]) -> dict[Pair, Verdict]:
        """On each (answer, gold answer), decided once."""
        verdicts: dict[Pair, Verdict] = {}
        with ThreadPoolExecutor(len(self._workers)) as threads:  # they start with the first pair that needs one
            asked: dict[Pair, Future[Verdict]] = {}
            for pair in dict.fromkeys(pairs):
                quick = fast_verdict(*pair)
                if quick is None:
                    asked[pair] = threads.submit(self._ask, pair)
                else:
                    verdicts[pair] = "right" if quick else "wrong"
            verdicts.update((pair, future.result()) for pair, future in asked.items())
        return verdicts

    def _ask(self, pair: Pair) -> Verdict:
        worker = self._idle.get()
        try:
            return worker.ask(*pair)
        finally:
            self._idle.put(worker)
