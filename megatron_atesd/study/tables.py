"""The tables of a study: for the console (rich) and as markdown, from the same cells."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from megatron_atesd.errors import DataError
from megatron_atesd.evaluate.responses import write_whole
from megatron_atesd.study.comparison import BEST
from megatron_atesd.study.signals import Place, correlations

Record = Mapping[str, Any]
BEGIN, END = "<!-- study -->", "<!-- /study -->"
_LISTS = ("before", "checks", "runs")
_TOKENS_ALIKE = 0.02  # relative difference of rollout tokens that needs no word


def console_tables(results: Record, comparison: Record) -> Iterator[Table]:
    """One table a task."""
    for task, part in comparison.items():
        table = Table(title=_title(results, task, part), title_justify="left")
        for number, column in enumerate(_columns(part)):
            table.add_column(column, justify="right" if number else "left")
        for row in _rows(part):
            table.add_row(*(re.sub(r"\*\*(.*)\*\*", r"[bold]\1[/bold]", cell) for cell in row))
        yield table


def markdown(results: Record, comparison: Record, pictures: Sequence[tuple[str, str]] = ()) -> str:
    """All tables, what their numbers are, and the pictures (alternative text, file name)."""
    parts = []
    for task, part in comparison.items():
        lines = [_columns(part), ["---"] + ["---:"] * (len(_columns(part)) - 1), *_rows(part)]
        parts.append(f"**{_title(results, task, part)}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    parts += [_signals(results, found)] if (found := correlations(results)) else []
    parts.append("\n".join(notes(results, comparison)))
    parts += [f"![{text}]({name})" for text, name in pictures]
    return "\n\n".join(parts) + "\n"


def _signals(results: Record, found: Mapping[str, Mapping[Place, Record]]) -> str:
    """The table of correlations, and what they are."""
    places = list(dict.fromkeys(place for row in found.values() for place in row))
    updates = results["checks"][0]["updates"]
    columns = ["signal", *(f"{task}, updates {lead + 1} to {lead + updates}" for task, lead in places)]
    rows = [[signal, *(_correlation(row.get(place)) for place in places)] for signal, row in found.items()]
    lines = [columns, ["---"] + ["---:"] * len(places), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    exposures = ", ".join(f"{row['alpha']:g}" for row in results["checks"][0]["changes"])
    return (
        f"**Which signal tells what accuracy gains**\n\n{table}\n\nCorrelation of a signal's fall with the gain of accuracy on the probe "
        f"problems over {updates} updates from the same state, over the exposures {exposures}: mean over bases, 95 % interval (t, one "
        "observation is a base)."
    )


def _correlation(found: Record | None) -> str:
    if found is None:
        return "–"
    ends = "" if found["ci95"] is None else f" ({found['ci95'][0]:+.2f} … {found['ci95'][1]:+.2f})"
    return f"{found['mean']:+.2f}{ends}"


def notes(results: Record, comparison: Record) -> Iterator[str]:
    """What the numbers are, and what to beware of."""
    comparisons = max((part["comparisons"] for part in comparison.values()), default=0)
    bases, seeds = len({run["base"] for run in results["runs"]}), len({run["seed"] for run in results["runs"]})
    unit = "a base (the mean over its seeds)" if results["unit"] == "base" else "a run"
    yield (
        f"Sampled: mean accuracy of {results['samples']} samples a held-out problem after update {results['update']}, in percent, ± "
        f"standard error. {bases} bases, {seeds} seeds; one observation is {unit}."
    )
    yield (
        "Differences in points: paired by base and seed, with 95 % intervals of the paired t test that hold together for all arms of a "
        f"column (Bonferroni, up to {comparisons}); **bold**: 0 is outside."
    )
    if any(BEST in part["references"] for part in comparison.values()):
        yield f"The {BEST} was chosen from these very runs, which flatters it."
    if results["unit"] == "run" and bases > 1:
        yield "Runs of one base are counted as independent: the intervals are too narrow as far as bases differ in what suits them."
    if len(results["runs"]) < results["planned"]:
        yield f"{len(results['runs'])} of {results['planned']} runs are there."
    if uneven := [task for task, part in comparison.items() if _token_spread(part) > _TOKENS_ALIKE]:
        yield f"Rollout tokens differ between arms in {', '.join(uneven)}: responses have other lengths, in equally many of them."
    commits = sorted({run["git"] or "unknown" for run in results["runs"]})
    hours = sum(run["seconds"] for run in results["runs"]) / 3600
    yield f"{hours:.1f} hours of updates; commit {', '.join(commit[:12] + ('-dirty' if 'dirty' in commit else '') for commit in commits)}."


def around_tables(readme: Path) -> tuple[str, str]:
    """What stands before and after the tables, marks included. Raises DataError for a file that is none to write to or lacks the marks."""
    try:
        with readme.open("r+", encoding="utf-8") as file:
            old = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--readme {readme} cannot be used ({error}); give a text file with the lines {BEGIN} and {END}") from None
    before, begin, rest = old.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(f"--readme {readme} lacks the lines {BEGIN} and {END}, between which the tables go; add them")
    return before + begin, end + after


def into_readme(readme: Path, text: str, pictures: Sequence[Path]) -> None:
    """Put `text` between the marks of `readme`, and the pictures beside it. Raises DataError as `around_tables`."""
    before, after = around_tables(readme)
    for picture in pictures:
        if not (there := readme.parent / picture.name).exists() or not there.samefile(picture):
            shutil.copyfile(picture, there)
    write_whole(readme.resolve(), f"{before}{text}{after}".encode())


def results_text(results: Record, comparison: Record) -> str:
    """results.json: one run or check a line, so that versions can be compared."""
    parts = {name: value for name, value in results.items() if name not in _LISTS} | {"comparison": comparison}
    texts = [f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in parts.items()]
    for name in _LISTS:
        lines = ",\n".join(f"  {json.dumps(entry, ensure_ascii=False)}" for entry in results[name])
        texts.append(f' "{name}": [\n{lines}\n ]')
    return "{\n" + ",\n".join(texts) + "\n}\n"


def _title(results: Record, task: str, part: Record) -> str:
    problems = next((run["problems"] for run in results["runs"] if run["task"] == task), 0)
    before = "" if part["before"] is None else f", {_percent(part['before'])} % before training"
    return f"{task}: {problems} held-out problems{before}"


def _columns(part: Record) -> list[str]:
    against = [f"− {name} ({arm})" if name == BEST else f"− {name}" for name, arm in part["references"].items()]
    return ["arm", "runs", "mean α", "sampled, %", "greedy, %", *against, "rollout tokens"]


def _rows(part: Record) -> Iterator[list[str]]:
    for name, row in part["arms"].items():
        error = "" if row["error"] is None else f" ± {_percent(row['error'])}"
        differences = [_difference(row["differences"][reference]) for reference in part["references"]]
        sampled = f"{_percent(row['mean'])}{error}"
        yield [
            name,
            str(row["runs"]),
            f"{row['alpha']:.2f}",
            sampled,
            _percent(row["greedy"]),
            *differences,
            f"{row['rollout_tokens']:,.0f}",
        ]


def _difference(found: Record | None) -> str:
    if found is None:
        return "–"
    points = _points(found["difference"])
    if found["ci95"] is None:
        return points
    low, high = found["ci95"]
    text = f"{points} ({_points(low)} … {_points(high)})"
    return f"**{text}**" if low > 0 or high < 0 else text


def _points(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:+.1f}"  # + 0.0: no negative zero


def _token_spread(part: Record) -> float:
    tokens = [row["rollout_tokens"] for row in part["arms"].values()]
    return max(tokens) / max(min(tokens), 1.0) - 1


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
