"""Grading measured: ours, every pair through sympy, and math-verify where it is installed."""

import importlib
import importlib.util
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from statistics import median
from typing import Any

import psutil
from rich.table import Table

from benchmarks.made_answers import KINDS, Made, made
from megatron_atesd.errors import ConfigError
from megatron_atesd.evaluate import grading
from megatron_atesd.evaluate.grading import Grader

Grade = Callable[[Sequence[tuple[str, str]]], list[bool]]
WARM = [(r"\sqrt{x}", "2"), (r"\sqrt{y}", "3")]
ALL_KINDS = (*KINDS, "mixed", "hostile")
_HOSTILE_PAIRS = 16


def grading_rows(
    kinds: Sequence[str], pairs: int, workers: int, repeats: int, seed: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """One row a kind: for each way of grading pairs/s, processor ms of a pair and the share of expected verdicts."""
    for name, value in (("pairs", pairs), ("workers", workers), ("repeats", repeats)):
        if value < 1:
            raise ConfigError(f"--{name} is {value}, must be 1 or more")
    for kind in kinds:
        if kind not in ALL_KINDS:
            raise ConfigError(f"--kinds names {kind!r}; choose from {', '.join(ALL_KINDS)}")
    rows = []
    for kind in kinds:
        say(f"{kind} …")
        measured: dict[str, list[tuple[float, float, float]]] = {}
        for repeat in range(repeats):
            answers = made(kind, _HOSTILE_PAIRS if kind == "hostile" else pairs, random.Random(f"{seed} {kind} {repeat}"))
            for way in ["ours"] if kind == "hostile" else _ways():
                measured.setdefault(way, []).append(_measured(way, answers, workers, 1.0 if kind == "hostile" else 20.0))
        names = ("pairs_per_second", "processor_ms", "right")
        ways = {way: dict(zip(names, map(median, zip(*runs, strict=True)), strict=True)) for way, runs in measured.items()}
        rows.append({"kind": kind, "pairs": pairs if kind != "hostile" else _HOSTILE_PAIRS, "ways": ways})
    return rows


def grading_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows for a person."""
    others = [way for way in ("sympy", "math-verify") if way in rows[0]["ways"]]
    table = Table(title="Grading" + ("" if "math-verify" in others else " (math-verify is not installed)"))
    for heading in ("kind", "pairs/s", "processor ms", "right", *(f"{way} pairs/s · ms · right · ÷" for way in others)):
        table.add_column(heading, justify="left" if heading == "kind" else "right")
    for row in rows:
        ours = row["ways"]["ours"]
        cells = [f"{ours['pairs_per_second']:,.0f}", f"{ours['processor_ms']:.2f}", f"{ours['right']:.1%}"]
        for way in others:
            other = row["ways"].get(way)
            cells.append("–" if other is None else _cell(other, ours["processor_ms"]))
        table.add_row(row["kind"], *cells)
    return table


def _cell(way: dict[str, float], ours: float) -> str:
    ratio = f"{way['processor_ms'] / ours:.1f}" if ours else "–"
    return f"{way['pairs_per_second']:,.0f} · {way['processor_ms']:.2f} · {way['right']:.1%} · {ratio}"


def _ways() -> list[str]:
    return ["ours", "sympy", *(["math-verify"] if importlib.util.find_spec("math_verify") else [])]


def _measured(way: str, answers: Sequence[Made], workers: int, seconds: float) -> tuple[float, float, float]:
    """Pairs/s, processor ms of a pair, share of the verdicts that are as expected."""
    with _grade(way, workers, seconds) as grade:
        grade(WARM)
        used, started = _processor_seconds(), time.perf_counter()
        verdicts = grade([(answer, gold) for answer, gold, _ in answers])
        took, used = time.perf_counter() - started, _processor_seconds() - used
    right = sum(verdict == expected for verdict, (_, _, expected) in zip(verdicts, answers, strict=True))
    return len(answers) / took, 1000 * used / len(answers), right / len(answers)


@contextmanager
def _grade(way: str, workers: int, seconds: float) -> Iterator[Grade]:
    if way == "math-verify":
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            yield lambda pairs: list(pool.map(_math_verify, pairs, chunksize=4))
        return
    decide = grading.fast_verdict
    grading.fast_verdict = decide if way == "ours" else lambda answer, gold: None
    try:
        with Grader(workers, seconds) as grader:
            yield lambda pairs: grader.grade([(f"\\boxed{{{answer}}}", gold) for answer, gold in pairs])
    finally:
        grading.fast_verdict = decide


def _math_verify(pair: tuple[str, str]) -> bool:
    library: Any = importlib.import_module("math_verify")
    answer, gold = (library.parse(f"${text}$") for text in pair)
    return bool(library.verify(gold, answer, float_rounding=10))


def _processor_seconds() -> float:
    """Of this process and its children, ended ones too."""
    here = psutil.Process()
    total = sum(here.cpu_times()[:4])
    for child in here.children(recursive=True):
        try:
            total += sum(child.cpu_times()[:2])
        except psutil.NoSuchProcess:
            continue
    return total
