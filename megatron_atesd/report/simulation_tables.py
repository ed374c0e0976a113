"""The tables of a simulated study, as text that is markdown too: one for each kind of student, a row a mode, a column a length."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
NOTE = "Regret of all updates / of their last fifth, ± standard error. 0: the best exposure at each update, 1: a random one."
FLAT_NOTE = "mean α; share of runs whose policy ends within 0.05 of 0 or 1"


def tables(results: Record) -> Iterator[str]:
    """What the numbers are, and each kind of student by itself."""
    seeds, hold = results["seeds"], results["hold"]
    yield f"{NOTE} {seeds} runs, whose noise is the same in every mode; each decision holds for {hold} updates.\n"
    for name in results["students"]:
        yield "\n".join(_table(results, name)) + "\n"


def lengths(results: Record) -> list[int]:
    """Numbers of decisions, rising."""
    return sorted({row["decisions"] for row in results["rows"]})


def row_of(results: Record, student: str, mode: str, decisions: int) -> Record | None:
    """The figures of one cell; None where that mode was not tried."""
    wanted = (student, mode, decisions)
    return next((row for row in results["rows"] if (row["student"], row["mode"], row["decisions"]) == wanted), None)


def pair(mean: float, error: float) -> str:
    """A mean and its standard error."""
    return f"{mean:.2f} ± {error:.2f}"


def _table(results: Record, student: str) -> Iterator[str]:
    case, counts = results["students"][student], lengths(results)
    flat = case["constant"] is None
    rows = [["mode", *(f"{count} decisions" for count in counts)]]
    for mode in results["modes"]:
        cells = [row_of(results, student, mode, count) for count in counts]
        if any(cells):
            rows.append([mode, *("–" if cell is None else _cell(cell) for cell in cells)])
    if not flat:
        best = " and ".join(f"{alpha:.2f}" for alpha in case["constant"]["alpha"])
        rows.append([f"best constant, {best}", *[f"{case['constant']['regret']:.2f}"] * len(counts)])
    yield f"**{student}**: {case['meaning']}{f' ({FLAT_NOTE})' if flat else ''}\n"
    yield from _aligned(rows)


def _cell(row: Record) -> str:
    if row["regret"] is None:
        share, error = 100 * row["saturated"], 100 * row["saturated_error"]
        return f"α {pair(row['alpha'], row['alpha_error'])}, {share:.0f} ± {error:.0f} %"
    return f"{pair(row['regret'], row['regret_error'])} / {pair(row['final_regret'], row['final_regret_error'])}"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        if number == 0:
            yield "|" + "|".join("-" * (width + 2) for width in widths) + "|"
