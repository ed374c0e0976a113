"""Sums of two to four steps, worked out line by line: what a model of 135M parameters sometimes gets right.

    python -m examples.smollm2_sums.problems --out DIR --train 1000 --probe 16 --test 120 --seed 1

A problem reads `Start with 27. Add 8. Multiply by 3.`, and its solution

    27 + 8 = 35
    35 * 3 = 105
    \\boxed{105}
"""

import argparse
import random

from megatron_atesd.config.bounds import seed_argument
from megatron_atesd.data.problems import check_disjoint, save_problems
from megatron_atesd.data.summary import report
from megatron_atesd.errors import run_command
from megatron_atesd.paths import user_path
from megatron_atesd.records import Problem

STEPS = (2, 3, 4)
START, OPERAND, FACTOR = (2, 20), (2, 9), (2, 4)  # smallest and largest
MOST = 3000  # problems of a split: there are some 6,000 of two steps
LARGEST = 99  # result of any step; none is below 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=user_path, required=True, help="folder for train.jsonl, probe.jsonl and test.jsonl")
    for split, size in (("train", 1000), ("probe", 16), ("test", 120)):
        parser.add_argument(f"--{split}", type=problems_argument, default=size, metavar="N", help=f"in {split}.jsonl (default {size})")
    parser.add_argument("--seed", type=seed_argument, default=1, help="another seed gives other problems (default 1)")
    a = parser.parse_args()
    rng, seen, splits = random.Random(a.seed), set[str](), dict[str, list[Problem]]()
    for split in ("test", "probe", "train"):
        splits[split] = [fresh_problem(rng, seen, f"sum-{split}-{i}", STEPS[i % len(STEPS)]) for i in range(1, getattr(a, split) + 1)]
    check_disjoint(splits)
    for split, problems in splits.items():
        save_problems(problems, a.out / f"{split}.jsonl")
        print(report(str(a.out / f"{split}.jsonl"), problems))


def problems_argument(text: str) -> int:
    """The size of a split, for argparse. Raises ArgumentTypeError when it is none."""
    if not (text.isdecimal() and 1 <= int(text) <= MOST):
        raise argparse.ArgumentTypeError(f"{text} must be a whole number from 1 to {MOST}")
    return int(text)


def fresh_problem(rng: random.Random, seen: set[str], id: str, steps: int) -> Problem:
    """A problem whose text is not in `seen`, to which it is added; its difficulty is the number of steps."""
    while (problem := draw_problem(rng, id, steps)).problem in seen:
        pass
    seen.add(problem.problem)
    return problem


def draw_problem(rng: random.Random, id: str, steps: int) -> Problem:
    """A problem of so many steps, of which every result lies in 0…99."""
    value = rng.randint(*START)
    words, lines = [f"Start with {value}."], []
    while len(lines) < steps:
        word, sign, operand, result = _draw_step(rng, value)
        if 0 <= result <= LARGEST:
            words.append(f"{word} {operand}.")
            lines.append(f"{value} {sign} {operand} = {result}")
            value = result
    return Problem(id, " ".join(words), "\n".join([*lines, f"\\boxed{{{value}}}"]), str(value), {"difficulty": steps})


def _draw_step(rng: random.Random, value: int) -> tuple[str, str, int, int]:
    """Word, sign, operand and result."""
    kind, operand = rng.choice(("Add", "Subtract", "Multiply by")), rng.randint(*OPERAND)
    if kind == "Multiply by":
        operand = rng.randint(*FACTOR)
    results = {"Add": ("+", value + operand), "Subtract": ("-", value - operand), "Multiply by": ("*", value * operand)}
    return kind, results[kind][0], operand, results[kind][1]


if __name__ == "__main__":
    run_command(main)
