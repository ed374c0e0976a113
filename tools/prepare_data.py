"""Make problem files: of a generated task, of a benchmark, or of a file or hub data set of others; and compare them (docs/data.md).

python tools/prepare_data.py chain --out DIR --train 2000 --probe 64 --test 210 --seed 1 --references det
python tools/prepare_data.py gsm_symbolic --out DIR --train 2000
python tools/prepare_data.py aime25 --out FILE
python tools/prepare_data.py jsonl SOURCE --out FILE --columns problem=question solution=worked answer=final
python tools/prepare_data.py hub OWNER/NAME --split train --out FILE
python tools/prepare_data.py contamination --train FILE --evaluation FILE FILE
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from megatron_atesd.config.bounds import seed_argument
from megatron_atesd.data.contamination import find_overlap
from megatron_atesd.data.contamination_report import as_json, as_text
from megatron_atesd.data.problems import OnError, check_disjoint, save_problems, save_text
from megatron_atesd.data.sources.benchmarks import BENCHMARKS
from megatron_atesd.data.sources.cache import Download, cached_records, default_cache, read_manifest
from megatron_atesd.data.sources.chain import chain_splits
from megatron_atesd.data.sources.chain_references import References
from megatron_atesd.data.sources.columns import Reading, column_map
from megatron_atesd.data.sources.gsm_symbolic import gsm_symbolic_splits
from megatron_atesd.data.sources.hub import HubSplit
from megatron_atesd.data.sources.jsonl import read_problems
from megatron_atesd.data.summary import report
from megatron_atesd.errors import run_command
from megatron_atesd.logs import add_log_level
from megatron_atesd.paths import user_path
from megatron_atesd.records import Problem

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
Command = Callable[[argparse.Namespace], None]


def count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError("a count cannot be negative")
    return number


def one_or_more(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError("fewer than one")
    return number


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_log_level(parser)
    sources = parser.add_subparsers(dest="source", required=True)

    def add(name: str, command: Command, help: str) -> argparse.ArgumentParser:
        added = sources.add_parser(name, help=help, description=help)
        added.set_defaults(command=command)
        return added

    for name in GENERATORS:
        generated = add(name, generate, f"generated problems ({name})")
        generated.add_argument("--out", type=user_path, required=True, help="folder for train.jsonl, probe.jsonl and test.jsonl")
        for split, size in (("train", 2000), ("probe", 64), ("test", 210)):
            generated.add_argument(f"--{split}", type=count, default=size, help=f"problems in {split}.jsonl (default {size})")
        generated.add_argument("--seed", type=seed_argument, default=1, help="another seed gives other problems (default 1)")
        for option, settings in OPTIONS.get(name, {}).items():
            generated.add_argument(f"--{option}", **settings)
    for name, benchmark in BENCHMARKS.items():
        named = add(name, take_benchmark, benchmark.help)
        origins = list(benchmark.origins)
        named.add_argument("--from", dest="origin", choices=origins, default=origins[0], help=f"where it is had (default {origins[0]})")
        add_output(named)
        add_cache(named)
    file = add("jsonl", take_file, "a file of your own: JSON lines, .json or .parquet")
    file.add_argument("path", type=user_path, help="JSON lines, .json or .parquet")
    add_reading(file)
    add_output(file)
    hub = add("hub", take_hub, "a split of a data set of the Hugging Face hub")
    hub.add_argument("name", help="OWNER/NAME")
    hub.add_argument("--split", default="train", help="split (default train)")
    hub.add_argument("--config", default="", help="which of its configurations, where it has several")
    hub.add_argument("--revision", default="", help="commit, tag or branch (default: the newest)")
    add_reading(hub)
    add_output(hub)
    add_cache(hub)
    compare = add("contamination", compare_files, "which evaluation problems a training file holds already")
    compare.add_argument("--train", type=user_path, required=True, help="problem file; its problems and solutions are searched")
    compare.add_argument("--evaluation", type=user_path, required=True, nargs="+", help="problem files that are searched for")
    compare.add_argument("--ngram", type=one_or_more, default=13, help="words in a row that count as overlap (default 13)")
    compare.add_argument("--out", type=user_path, help="JSON file with every problem that was found")
    return parser.parse_args()


def add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--columns", nargs="+", default=[], metavar="FIELD=COLUMN", help="columns for the fields, as in problem=question")
    parser.add_argument(
        "--box-answers", action="store_true", help="a record without a solution gets its boxed answer as one (for evaluation files)"
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=user_path, required=True, help="JSONL file to write")
    parser.add_argument("--on-error", choices=get_args(OnError), default="stop", help="what a bad record does (default stop)")


def add_cache(parser: argparse.ArgumentParser) -> None:
    where = "$XDG_CACHE_HOME/megatron_atesd, else ~/.cache/megatron_atesd"
    parser.add_argument("--cache", type=user_path, help=f"folder that keeps downloads (default {where})")


def generate(args: argparse.Namespace) -> None:
    options = {option: getattr(args, option) for option in OPTIONS.get(args.source, {})}
    splits = GENERATORS[args.source]({"train": args.train, "probe": args.probe, "test": args.test}, args.seed, **options)
    check_disjoint(splits)
    for name, problems in splits.items():
        if problems:
            write(args.out / f"{name}.jsonl", problems)


def take_file(args: argparse.Namespace) -> None:
    write(args.out, read_problems(args.path, args.on_error, Reading(column_map(args.columns), args.box_answers)))


def take_hub(args: argparse.Namespace) -> None:
    reading = Reading(column_map(args.columns), args.box_answers)
    take_download(args, HubSplit(args.name, args.split, args.config, args.revision), reading)


def take_benchmark(args: argparse.Namespace) -> None:
    take_download(args, *BENCHMARKS[args.source].origins[args.origin])


def take_download(args: argparse.Namespace, download: Download, reading: Reading) -> None:
    path = cached_records(download, args.cache or default_cache())
    print(f"{read_manifest(path)['origin']}\n  kept in {path}; delete it to download it anew")
    write(args.out, read_problems(path, args.on_error, reading))


def write(path: Path, problems: list[Problem]) -> None:
    save_problems(problems, path)
    print(report(str(path), problems))


def compare_files(args: argparse.Namespace) -> None:
    overlap = find_overlap(args.train, args.evaluation, args.ngram)
    if args.out:
        save_text([json.dumps(as_json(overlap), ensure_ascii=False, indent=2) + "\n"], args.out)
    print(as_text(overlap))


def main() -> None:
    args = parse()
    args.command(args)


if __name__ == "__main__":
    run_command(main)
