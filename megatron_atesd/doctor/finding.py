"""What the doctor found, and what becomes of it: a table for people, one line that ends a job."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rich.table import Column, Table

from megatron_atesd.errors import AtesdError, ConfigError

COLOURS = {"error": "red", "warning": "yellow", "information": "dim"}  # the worst first


@dataclass(frozen=True)
class Finding:
    """One fact about the job's machines. An error ends a job, a warning is said once, information only the doctor's own command shows."""

    severity: Literal["error", "warning", "information"]
    check: str
    what: str
    remedy: str = ""


def as_finding(check: str, error: AtesdError) -> Finding:
    """The error finding that a refusal is: what it says, and after its semicolon what to do."""
    what, _, remedy = str(error).partition("; ")
    return Finding("error", check, what, remedy)


def merge(by_rank: Sequence[Sequence[Finding]]) -> list[Finding]:
    """The findings of all ranks. Of those that call for the same remedy, the first stands for all and names their ranks."""
    ranks: dict[tuple[str, str, str], list[int]] = {}
    first: dict[tuple[str, str, str], Finding] = {}
    for rank, findings in enumerate(by_rank):
        for finding in findings:
            kind = (finding.severity, finding.check, finding.remedy)
            first.setdefault(kind, finding)
            if rank not in ranks.setdefault(kind, []):
                ranks[kind].append(rank)
    everyone = len(by_rank)
    return [f if len(ranks[kind]) == everyone else replace(f, what=f"{f.what} ({name_ranks(ranks[kind])})") for kind, f in first.items()]


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """Errors, then warnings, then the rest."""
    return sorted(findings, key=lambda finding: list(COLOURS).index(finding.severity))


def name_ranks(ranks: Sequence[int]) -> str:
    """`rank 3`, `ranks 0, 1` or `ranks 0, 1, 2 and 9 more`."""
    shown, more = ", ".join(map(str, ranks[:3])), len(ranks) - 3
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}" + (f" and {more} more" if more > 0 else "")


def refuse_errors(findings: Sequence[Finding]) -> None:
    """Raise ConfigError with every error among the findings, if there is one."""
    errors = [f"{finding.what}: {finding.remedy}" for finding in findings if finding.severity == "error"]
    if errors:
        raise ConfigError(" | ".join(errors))


def table(findings: Sequence[Finding]) -> Table:
    """One row a finding."""
    result = Table("", "check", Column("found", overflow="fold"), Column("what to do", overflow="fold"))  # whole, to be copied
    for finding in findings:
        result.add_row(finding.severity, finding.check, finding.what, finding.remedy, style=COLOURS[finding.severity])
    return result
