"""Speed of grading by kind of answer, beside slower ways in the same run.

python tools/bench_grading.py --out bench.json
python tools/bench_grading.py --pairs 1000 --workers 2 --repeats 3

Kinds: integers · fractions and decimals · formulas (radicals, π, polynomials, logarithms, sines, powers) · collections (sets, tuples,
intervals, unions, lists, matrices) · text (units, percent, choices, words). Every second answer is right, in another spelling than the
gold answer; no two pairs are equal. mixed: equal shares of these five. hostile: answers that would take for ever or all memory, with a
limit of one second each; they are not in mixed.
ours: the grader, in --workers processes that have started. sympy: every pair in such a process, without what is decided before.
math-verify: its parse and verify, gold between dollar signs, in as many processes; only where it is installed.
pairs/s: by the clock (median of --repeats, in turns, with other pairs each time). processor ms: of one pair, all processes; a busy machine
changes it less. ÷: the processor time of the other way over ours. right: share of the verdicts that are as they were made to be.
"""

import argparse
import json

from rich.console import Console

from benchmarks.gradings import ALL_KINDS, grading_rows, grading_table
from megatron_atesd.errors import run_command
from megatron_atesd.paths import user_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--kinds", default=",".join(ALL_KINDS), metavar="KIND,…", help="default: all")
    add("--pairs", type=int, default=250, help="answers of each kind and repeat (default 250)")
    add("--workers", type=int, default=2, help="processes (default 2)")
    add("--repeats", type=int, default=3, help="medians are printed (default 3)")
    add("--seed", type=int, default=0, help="of the answers (default 0)")
    add("--out", type=user_path, help="also write the figures to this JSON file")
    args = parser.parse_args()

    kinds = args.kinds.split(",")
    rows = grading_rows(kinds, args.pairs, args.workers, args.repeats, args.seed, Console(stderr=True).print)
    Console(width=max(110, Console().width)).print(grading_table(rows))
    if args.out:
        args.out.write_text(json.dumps({"settings": vars(args) | {"out": str(args.out)}, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
