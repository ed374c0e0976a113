"""Make problem files: train, probe and test from a generated task, or one file from a file of others.

python tools/prepare_data.py chain --out DIR --train 2000 --probe 64 --test 210 --seed 1 --references det
python tools/prepare_data.py gsm_symbolic --out DIR --train 2000
python tools/prepare_data.py jsonl SOURCE --out FILE
"""

import argparse
from typing import Any, get_args

from megatron_atesd.config.bounds import seed_argument
from megatron_atesd.data.problems import check_disjoint, save_problems
from megatron_atesd.data.sources.chain import chain_splits
from megatron_atesd.data.sources.chain_references import References
from megatron_atesd.data.sources.gsm_symbolic import gsm_symbolic_splits
from megatron_atesd.data.sources.jsonl import read_problems
from megatron_atesd.data.summary import report
from megatron_atesd.errors import run_command
from megatron_atesd.paths import user_path

GENERATORS: dict[str, Any] = {"chain": chain_splits, "gsm_symbolic": gsm_symbolic_splits}
# What one generator alone can be told, for argparse.
OPTIONS: dict[str, dict[str, Any]] = {
    "chain": {
        "references": {
            "choices": get_args(References),
            "default": "det",
            "help": "how solutions are written: one operation a line (det, the default), or some lines with two, their intermediate result "
            "left out: at the end of long chains (late; lateh: from 5 operations on) or at random (rand); the problems are the same",
        }
    }
}


def count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError("a count cannot be negative")
    return number


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sources = parser.add_subparsers(dest="source", required=True)
    for name in GENERATORS:
        generated = sources.add_parser(name, help=f"generated problems ({name})")
        generated.add_argument("--out", type=user_path, required=True, help="folder for train.jsonl, probe.jsonl and test.jsonl")
        for split, size in (("train", 2000), ("probe", 64), ("test", 210)):
            generated.add_argument(f"--{split}", type=count, default=size, help=f"problems in {split}.jsonl (default {size})")
        generated.add_argument("--seed", type=seed_argument, default=1, help="another seed gives other problems (default 1)")
        for option, settings in OPTIONS.get(name, {}).items():
            generated.add_argument(f"--{option}", **settings)
    file = sources.add_parser("jsonl", help="check and normalise a file with the columns problem and solution")
    file.add_argument("path", type=user_path, help="JSON lines, .json or .parquet")
    file.add_argument("--out", type=user_path, required=True, help="JSONL file to write")
    file.add_argument("--on-error", choices=("stop", "skip"), default="stop", help="what a bad JSON line does (default stop)")
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.source == "jsonl":
        files = {args.out: read_problems(args.path, args.on_error)}
    else:
        options = {option: getattr(args, option) for option in OPTIONS.get(args.source, {})}
        splits = GENERATORS[args.source]({"train": args.train, "probe": args.probe, "test": args.test}, args.seed, **options)
        check_disjoint(splits)
        files = {args.out / f"{name}.jsonl": problems for name, problems in splits.items() if problems}
    for path, problems in files.items():
        save_problems(problems, path)
        print(report(str(path), problems))


if __name__ == "__main__":
    run_command(main)
