"""Compare finished evaluations on the same problems: is one model better than another, or is the difference within noise?

python tools/compare.py BASE RUN …                                  each an evaluation folder (--out of tools/evaluate.py)
python tools/compare.py opsd=A1,A2,A3 atesd=B1,B2,B3 --out FILE     several runs an arm, which differ in their seed

The first arm is the baseline. Each other arm's Average@K minus the baseline's is told with a 95 % interval and a p value, from the
differences problem by problem, and with a sentence that says whether it is within noise. With several arms p values are corrected (Holm),
and the intervals are so wide that all of them hold together with 95 % (Bonferroni). An arm of three or more runs has its spread over seeds
counted in. Folders on other problems are refused; sampling that differs is told as a warning. docs/evaluation.md says how to read it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from megatron_atesd.errors import ConfigError, run_command
from megatron_atesd.logs import add_log_level
from megatron_atesd.paths import user_path

WIDTH = 140  # of the table where the output is no terminal


def main() -> None:
    a = parse()
    folders = arms_of(a.arms)
    from megatron_atesd.evaluate.comparison import compare  # slow to import
    from megatron_atesd.evaluate.finished import read_finished
    from megatron_atesd.evaluate.tables import arm_table, comparison_table

    found = compare({name: [read_finished(folder) for folder in those] for name, those in folders.items()})
    lines = [entry["sentence"] for entry in found["differences"].values()] + [f"note: {note}" for note in found["notes"]]
    lines += [f"warning: {warning}" for warning in found["warnings"]]
    console = Console(width=max(WIDTH, Console().width))
    console.print(comparison_table(found), arm_table(found), sep="\n")
    console.print(*lines, sep="\n", soft_wrap=True, highlight=False, markup=False)
    if a.out is not None:
        write(a.out, found)
        print(f"written to {a.out}")


def write(out: Path, found: dict[str, Any]) -> None:
    """Raises ConfigError when the file cannot be written."""
    try:
        out.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out is {out}, which cannot be written to ({error.strerror}); give a file in a folder that exists") from None


def arms_of(words: list[str]) -> dict[str, list[Path]]:
    """Folders by arm. A word that is a folder is one, whatever signs are in it; otherwise it is NAME=DIR[,DIR…].

    Raises ConfigError for one name twice, and where there is nothing to compare.
    """
    arms: dict[str, list[Path]] = {}
    for word in words:
        name, equals, rest = word.partition("=")
        whole = user_path(word).is_dir() or not equals
        name, those = (word, [user_path(word)]) if whole else (name, [user_path(part) for part in rest.split(",") if part])
        if name in arms:
            raise ConfigError(f"the arm {name} is given twice; give all its folders at once, NAME=DIR,DIR, or another name")
        if not name or not those:
            raise ConfigError(f"{word} names no arm and folder: write NAME=DIR or NAME=DIR,DIR")
        arms[name] = those
    if sum(map(len, arms.values())) < 2:
        raise ConfigError(f"{words[0]} is one evaluation, and nothing to compare it with: give two or more, the baseline first")
    return arms


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add_log_level(parser)
    parser.add_argument("arms", nargs="+", metavar="ARM", help="DIR, or NAME=DIR[,DIR…] of runs with different seeds; the baseline first")
    parser.add_argument("--out", type=user_path, metavar="FILE", help="also write everything to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
