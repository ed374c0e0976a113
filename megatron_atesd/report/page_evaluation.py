"""Evaluations in a report's page, read with care: any key of evaluation.json may be missing or of another kind."""

from collections.abc import Mapping
from html import escape
from typing import Any

from megatron_atesd.report.page_parts import code, number, table
from megatron_atesd.report.run_data import RunData

# key of evaluation.json → column; shares are shown in percent
EVALUATION_SHARES = {
    "greedy": "greedy",
    "majority_at_k": "majority",
    "with_answer": "answered",
    "truncated": "cut",
    "loops": "in a loop",
}


def evaluation(runs: Mapping[str, RunData], others: Mapping[str, dict[str, Any]]) -> str:
    """A row an evaluation, those of no run first; columns that no evaluation has are left out. '' without one."""
    of_runs = (
        (f"{run}/{name}" if len(runs) > 1 else name, found) for run, data in runs.items() for name, found in data.evaluations.items()
    )
    found = {**others, **dict(of_runs)}
    if not found:
        return ""
    shares = {key: title for key, title in EVALUATION_SHARES.items() if any(isinstance(r.get(key), int | float) for r in found.values())}
    passed = any(isinstance(result.get("pass_at"), dict) for result in found.values())
    head = ["evaluation", "problems", "samples", "Average@k, %", *(["pass@k, %"] if passed else []), *(f"{t}, %" for t in shares.values())]
    rows = [
        [
            code(name),
            number(result.get("problems")),
            number(result.get("samples")),
            _share(result, "average_at_k", "ci95"),
            *([_pass_at(result)] if passed else []),
            *(_share(result, key, f"{key}_ci95") for key in shares),
        ]
        for name, result in found.items()
    ]
    return table(head, rows) + "<p>In brackets: 95 % intervals over problems.</p>" + _by_difficulty(found)


def _by_difficulty(found: Mapping[str, Mapping[str, Any]]) -> str:
    groups = {name: result.get("by_difficulty") for name, result in found.items()}
    rows = [
        [
            code(name),
            escape(str(level)),
            number(part.get("problems")),
            _share(part, "average_at_k", "ci95"),
            _share(part, "greedy", "greedy_ci95"),
        ]
        for name, group in groups.items()
        for level, part in (group.items() if isinstance(group, dict) else ())
        if isinstance(part, dict)
    ]
    head = ["evaluation", "difficulty", "problems", "Average@k, %", "greedy, %"]
    return f"<details><summary>By difficulty</summary>{table(head, rows)}</details>" if rows else ""


def _share(result: Mapping[str, Any], key: str, interval: str = "") -> str:
    value, ends = result.get(key), result.get(interval)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–"
    if isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, int | float) for end in ends):
        return f"{100 * value:.1f} <small>({100 * ends[0]:.1f} – {100 * ends[1]:.1f})</small>"
    return f"{100 * value:.1f}"


def _pass_at(result: Mapping[str, Any]) -> str:
    found, intervals = result.get("pass_at"), result.get("pass_at_ci95")
    counts = sorted((int(k) for k in found if str(k).isdigit()), reverse=True) if isinstance(found, dict) else []
    if not counts or not isinstance(found, dict):
        return "–"
    key = str(counts[0])
    ends = intervals.get(key) if isinstance(intervals, dict) else None
    return f"@{key}: {_share({'value': found[key], 'ends': ends}, 'value', 'ends')}"
