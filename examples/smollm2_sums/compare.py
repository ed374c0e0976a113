"""Tell what training changed: accuracy of the base and of each training, what the differences are worth, and sample responses.

python -m examples.smollm2_sums.compare --out runs/smollm2_sums --arms fixed aligned --show 1
"""

import argparse
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console

from megatron_atesd.data.boxes import final_boxed
from megatron_atesd.data.problems import load_problems
from megatron_atesd.errors import run_command
from megatron_atesd.evaluate.average import paired_difference
from megatron_atesd.evaluate.tables import table
from megatron_atesd.paths import user_path
from megatron_atesd.records import Problem

GREEDY = -1  # number of the greedy response in responses.jsonl
PHASES = ("rollout", "teacher", "student", "probe", "step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=user_path, required=True, help="folder of the example's run")
    parser.add_argument("--arms", nargs="+", required=True, help="trainings in it, compared with the base and each other")
    parser.add_argument("--show", type=int, default=1, help="held-out problems whose responses are printed (default 1)")
    a = parser.parse_args()
    folders = {"base": a.out / "base-evaluation", **{arm: a.out / arm / "evaluation" for arm in a.arms}}
    evaluations = {name: json.loads((folder / "evaluation.json").read_text()) for name, folder in folders.items()}
    responses = {name: read_lines(folder / "responses.jsonl") for name, folder in folders.items()}
    for problem in load_problems(a.out / "data/test.jsonl")[: a.show]:
        print(sample_text(problem, {name: greedy_response(given, problem.id) for name, given in responses.items()}))
    Console().print(table(evaluations, title="held-out problems"))
    for name, given in responses.items():
        print(f"{name}: {style(given)}")
    for arm in a.arms:
        print(f"{arm}: {seconds_text(read_lines(a.out / arm / 'metrics.jsonl'))}")
    for earlier, later in pairs(list(folders)):
        print(difference_text(later, responses[later], earlier, responses[earlier]))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Each name with each after it."""
    return [(earlier, later) for i, earlier in enumerate(names) for later in names[i + 1 :]]


def greedy_response(responses: Sequence[dict[str, Any]], problem: str) -> str:
    """Text of the greedy response to the problem of this id."""
    return next(r["text"] for r in responses if r["id"] == problem and r["sample"] == GREEDY)


def sample_text(problem: Problem, responses: dict[str, str]) -> str:
    """One problem for a person to read: question, a response for each name, reference solution."""
    parts = {"question": problem.problem, **{f"response {name}": text for name, text in responses.items()}, "reference": problem.solution}
    return "\n".join(f"─── {name}\n{text.strip()}" for name, text in parts.items()) + "\n"


def style(responses: Sequence[dict[str, Any]]) -> str:
    """How responses look, whether right or wrong: share with a boxed answer, share cut at the limit, mean length."""
    boxed = mean(final_boxed(r["text"]) is not None for r in responses)
    cut, tokens = mean(r["truncated"] for r in responses), mean(r["tokens"] for r in responses)
    return f"{boxed:.0%} of {len(responses)} responses have a boxed answer, {cut:.0%} are cut at the limit, {tokens:.0f} tokens on average"


def seconds_text(metrics: Sequence[dict[str, Any]]) -> str:
    """Mean seconds of an update and of its phases."""
    return "seconds an update: " + ", ".join(f"{phase} {mean(m[f'time/{phase}'] for m in metrics):.1f}" for phase in PHASES)


def difference_text(name: str, responses: Sequence[dict[str, Any]], other: str, others: Sequence[dict[str, Any]]) -> str:
    """How much more of its samples one model has right than another on the same problems, with the paired interval over problems."""
    found = paired_difference(right_NK(responses), right_NK(others))
    low, high = found["ci95"]
    return f"{name} − {other}: {100 * found['difference']:+.1f} points ({100 * low:.1f} … {100 * high:.1f})"


def right_NK(responses: Sequence[dict[str, Any]]) -> list[list[bool]]:
    """Whether each sample is right, a row a problem in the file's order."""
    samples = [r for r in responses if r["sample"] != GREEDY]
    return [[r["right"] for r in group] for _, group in groupby(samples, key=lambda r: r["id"])]


if __name__ == "__main__":
    run_command(main)
