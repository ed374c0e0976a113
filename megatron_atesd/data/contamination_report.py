"""What `tools/prepare_data.py contamination` prints and writes."""

from collections import Counter
from collections.abc import Sequence
from statistics import mean
from typing import Any

from megatron_atesd.data.contamination import Overlap, Suspect

_SHOWN = 10  # problems in the printed table; the JSON file has all


def as_json(overlap: Overlap) -> dict[str, Any]:
    """Plain values: the counts of each evaluation file, and every problem of which the training file holds something, worst first."""
    return {
        "train": overlap.train,
        "train_problems": overlap.train_problems,
        "ngram": overlap.ngram,
        "verdict": verdict(overlap),
        "evaluations": {
            name: _counts(suspects) | {"found": [_plain_values(s) for s in _worst(suspects)]}
            for name, suspects in overlap.evaluations.items()
        },
    }


def as_text(overlap: Overlap) -> str:
    """A table of the files, one of the worst problems, and the verdict."""
    lines = [f"{overlap.train}: {overlap.train_problems} training problems, compared by {overlap.ngram} words in a row", *_files(overlap)]
    every = [s for suspects in overlap.evaluations.values() for s in suspects]
    if worst := _worst(every):
        rows = [[s.id, f"{s.share:.0%}", *_where(s)] for s in worst[:_SHOWN]]
        lines += ["", *_table([["problem", "share", "training line", "its"], *rows])]
    if len(worst) > _SHOWN:
        lines += [f"… and {len(worst) - _SHOWN} more"]
    return "\n".join([*lines, "", verdict(overlap)])


def verdict(overlap: Overlap) -> str:
    """How many evaluation problems the training file holds, and what to do, in a sentence or two."""
    every = [s for suspects in overlap.evaluations.values() for s in suspects]
    levels = Counter(s.level for s in every)
    if levels["none"] == len(every):
        return f"None of the {len(every)} evaluation problems is in {overlap.train}, nor any {overlap.ngram} words in a row of one."
    found = (
        f"Of the {len(every)} evaluation problems {overlap.train} holds {levels['copy']} word for word, "
        f"half or more of {levels['most']}, and less of {levels['some']}, which may be a stock phrase."
    )
    if levels["copy"] or levels["most"]:
        return f"{found} Leave the training problems that are copies, or nearly, out of the training file."
    return f"{found} Read the lines above before you call the file clean."


def _files(overlap: Overlap) -> list[str]:
    head = ["evaluation file", "problems", "short", "copies", "most", "some", "in problems", "in solutions", "mean share"]
    rows: list[list[str]] = []
    for name, suspects in overlap.evaluations.items():
        *counts, share = _counts(suspects).values()
        rows.append([name, *map(str, counts), f"{share:.1%}"])
    return _table([head, *rows])


def _counts(suspects: Sequence[Suspect]) -> dict[str, float]:
    levels = Counter(s.level for s in suspects)
    return {
        "problems": len(suspects),
        "short": sum(not s.grams for s in suspects),
        "copies": levels["copy"],
        "most": levels["most"],
        "some": levels["some"],
        "in_problems": sum(bool(s.seen["problem"]) for s in suspects),
        "in_solutions": sum(bool(s.seen["solution"]) for s in suspects),
        "mean_share": mean(s.share for s in suspects),
    }


def _plain_values(s: Suspect) -> dict[str, Any]:
    found = {"id": s.id, "level": s.level, "ngrams": s.grams, "share": s.share, "copied_in_lines": s.copies}
    found |= {f"ngrams_in_{part}s": len(seen) for part, seen in s.seen.items()}
    if s.closest:
        found["closest"] = dict(zip(("shared_ngrams", "line", "id", "part"), s.closest, strict=True))
    return found


def _worst(suspects: Sequence[Suspect]) -> list[Suspect]:
    """Those of which the training file holds something: copies first, then the largest share."""
    return sorted((s for s in suspects if s.level != "none"), key=lambda s: (s.level != "copy", -s.share))


def _where(s: Suspect) -> list[str]:
    """Training line, and what of it shares most with the problem."""
    if s.copies:
        return [str(s.copies[0]), "whole problem"]
    assert s.closest is not None
    _, line, _, part = s.closest
    return [str(line), part]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as text; the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
