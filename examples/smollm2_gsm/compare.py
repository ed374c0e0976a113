"""Tell what training changed: accuracy before and after, how responses look, seconds an update, and sample responses.

python -m examples.smollm2_gsm.compare --out runs/smollm2_gsm --show 2
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console

from megatron_atesd.data.boxes import last_boxed
from megatron_atesd.data.problems import load_problems
from megatron_atesd.errors import run_command
from megatron_atesd.evaluate.average import table
from megatron_atesd.paths import user_path
from megatron_atesd.records import Problem

WHEN = ("before", "after")
GREEDY = -1  # number of the greedy response in responses.jsonl
PHASES = ("rollout", "teacher", "student", "probe", "step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=user_path, required=True, help="folder of the example's run")
    parser.add_argument("--show", type=int, default=2, help="held-out problems whose responses are printed (default 2)")
    a = parser.parse_args()
    responses = {when: read_lines(a.out / when / "responses.jsonl") for when in WHEN}
    for problem in load_problems(a.out / "data/test.jsonl")[: a.show]:
        print(sample_text(problem, {when: greedy_response(responses[when], problem.id) for when in WHEN}))
    evaluations = {when: json.loads((a.out / when / "evaluation.json").read_text()) for when in WHEN}
    Console().print(table(evaluations, title="held-out problems"))
    for when in WHEN:
        low, high = evaluations[when]["greedy_ci95"]
        print(f"{when:>6}: greedy accuracy's 95 % interval {low:.1%} to {high:.1%}; {style(responses[when])}")
    print(seconds_text(read_lines(a.out / "learned/metrics.jsonl")))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def greedy_response(responses: Sequence[dict[str, Any]], problem: str) -> str:
    """Text of the greedy response to the problem of this id."""
    return next(r["text"] for r in responses if r["id"] == problem and r["sample"] == GREEDY)


def sample_text(problem: Problem, responses: dict[str, str]) -> str:
    """One problem for a person to read: question, a response for each name, reference solution."""
    parts = {"question": problem.problem, **{f"response {name}": text for name, text in responses.items()}, "reference": problem.solution}
    return "\n".join(f"─── {name}\n{text.strip()}" for name, text in parts.items()) + "\n"


def style(responses: Sequence[dict[str, Any]]) -> str:
    """How responses look, whether right or wrong: share with a boxed answer, share cut at the limit, mean length."""
    boxed = mean(last_boxed(r["text"]) is not None for r in responses)
    cut, tokens = mean(r["truncated"] for r in responses), mean(r["tokens"] for r in responses)
    return f"{boxed:.0%} of {len(responses)} responses have a boxed answer, {cut:.0%} are cut at the limit, {tokens:.0f} tokens on average"


def seconds_text(metrics: Sequence[dict[str, Any]]) -> str:
    """Mean seconds of an update and of its phases."""
    return "seconds an update: " + ", ".join(f"{phase} {mean(m[f'time/{phase}'] for m in metrics):.1f}" for phase in PHASES)


if __name__ == "__main__":
    run_command(main)
