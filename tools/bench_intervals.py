"""How far the intervals and tests of evaluations can be trusted: measured on simulated ones, whose truth is known.

python tools/bench_intervals.py [--repeats 10000] [--comparisons 2000] [--out FILE.json]

Coverage: of 95 % intervals over problems, for Average@K, pass@2, pass@K and majority@K, at 30, 90 and 210 problems, 4 and 12 samples, and
mean rates of .1, .5 and .95, each with eight distributions of the problems' difficulty. False alarms: comparisons in which tools/compare.py
calls equal arms different, with one run an arm and with several whose seeds move the rates. Some minutes of one core.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from benchmarks.intervals import coverage_rows, difficulties, false_alarms
from megatron_atesd.errors import run_command
from megatron_atesd.paths import user_path

Row = dict[str, Any]
LOW, HIGH = 0.93, 0.97
# (arms, runs an arm, how far seeds move the log-odds)
ARMS = ((2, 1, 0.0), (3, 1, 0.0), (4, 1, 0.0), (2, 3, 0.0), (2, 3, 0.3), (2, 3, 1.0), (3, 3, 0.3), (2, 5, 0.3))


def main() -> None:
    a = parse()
    covered = list(coverage_rows(lambda samples: ["average", "pass2", f"pass{samples}", "majority"], a.repeats, a.seed))
    print(*coverage_lines([row for row in covered if row["figure"] == "average"]), "", sep="\n")
    print(*outside_lines(covered), "", sep="\n", flush=True)
    alarms = list(alarm_rows(a.comparisons, a.seed))
    print(*alarm_lines(alarms), sep="\n")
    if a.out is not None:
        a.out.write_text(json.dumps({"coverage": covered, "false_alarms": alarms}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def coverage_lines(rows: Sequence[Row]) -> Iterator[str]:
    """A table of Average@K: lowest and highest coverage over the distributions."""
    yield "| samples | problems | mean | covered, % | lowest with | highest with |\n|---|---|---|---|---|---|"
    for (samples, problems, share), cell in groupby(rows, key=lambda row: (row["samples"], row["problems"], row["share"])):
        found = sorted(cell, key=lambda row: row["covered"])
        ends = f"{100 * found[0]['covered']:.1f} – {100 * found[-1]['covered']:.1f}"
        yield f"| {samples} | {problems} | {share:g} | {ends} | {found[0]['difficulty']} | {found[-1]['difficulty']} |"


def outside_lines(rows: Sequence[Row]) -> Iterator[str]:
    """A table of all figures: how many cells are covered in less than 93 % or more than 97 % of evaluations."""
    yield "| figure | truth | cells | below 93 % | lowest, % | above 97 % | highest, % |\n|---|---|---|---|---|---|---|"
    for figure in dict.fromkeys("pass@K" if row["figure"] in ("pass4", "pass12") else row["figure"] for row in rows):
        names = ("pass4", "pass12") if figure == "pass@K" else (figure,)
        for text, near in (("0.05 – 0.95", False), ("nearer to 0 or 1", True)):
            cells = [r["covered"] for r in rows if r["figure"] in names and (not 0.045 < r["truth"] < 0.955) is near]
            if cells:
                outside = [sum(c < LOW for c in cells), f"{100 * min(cells):.1f}", sum(c > HIGH for c in cells), f"{100 * max(cells):.1f}"]
                yield f"| {figure} | {text} | {len(cells)} | {' | '.join(map(str, outside))} |"


def alarm_rows(repeats: int, seed: int) -> Iterator[Row]:
    """Equal arms, at three means."""
    for arms, runs, seeds in ARMS:
        for problems, samples in ((30, 4), (30, 12), (90, 12)):
            for share, name in ((0.1, "Beta, a + b = 1"), (0.5, "Beta, a + b = 1"), (0.95, "Beta, a + b = 3")):
                found = false_alarms(difficulties(share)[name], arms, runs, seeds, problems, samples, repeats, seed)
                yield {
                    "arms": arms,
                    "runs": runs,
                    "seeds": seeds,
                    "problems": problems,
                    "samples": samples,
                    "share": share,
                    "alarms": found,
                }


def alarm_lines(rows: Sequence[Row]) -> Iterator[str]:
    """A table of false alarms: the lowest and the highest share over problems, samples and means."""
    yield "| arms | runs an arm | seeds move log-odds by | false alarms, % |\n|---|---|---|---|"
    for (arms, runs, seeds), cell in groupby(rows, key=lambda row: (row["arms"], row["runs"], row["seeds"])):
        shares = [100 * row["alarms"] for row in cell]
        yield f"| {arms} | {runs} | {seeds:g} | {min(shares):.1f} – {max(shares):.1f} |"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("--repeats", type=int, default=10000, metavar="N", help="simulated evaluations a cell of coverage (default 10000)")
    add("--comparisons", type=int, default=2000, metavar="N", help="simulated comparisons a cell of false alarms (default 2000)")
    add("--seed", type=int, default=1, help="of the simulation (default 1)")
    add("--out", type=user_path, metavar="FILE", help="also write all cells to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
