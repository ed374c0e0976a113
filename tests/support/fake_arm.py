"""Stands for the commands of a study: a training, an evaluation or a base that takes a moment, whose result follows from its settings.

fake_arm.py tools/train.py --config FILE
fake_arm.py tools/evaluate.py --config FILE --model DIR --data FILE --out DIR --seed N …
fake_arm.py tools/check_progress.py --config FILE --alphas A,A --lead N --out FILE …
fake_arm.py make DIR
Each writes its files piece by piece, so that a kill can leave any half of them.
"""

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import yaml

PAUSE = 0.02  # seconds between two pieces


def main() -> None:
    script, *words = sys.argv[1:]
    if script == "make":
        make(Path(words[0]))
        return
    given = dict(zip(words[::2], words[1::2], strict=False))
    config: dict[str, Any] = yaml.safe_load(Path(given["--config"]).read_text())
    if Path(script).name == "train.py":
        train(Path(config["run"]["dir"]), config)
    elif Path(script).name == "check_progress.py":
        decides = f"{Path(config['data']['train']).parts[-3:]} {given['--lead']}"
        check(Path(given["--out"]), [float(alpha) for alpha in given["--alphas"].split(",")], decides)
    else:
        evaluate(Path(given["--out"]), f"{config['exposure']} {given['--seed']} {Path(given['--data']).parts[-3:]}")


def make(folder: Path) -> None:
    write(folder / "config.json", "{}")
    write(folder / "SHA256SUMS", f"what is in {folder.name}\n")
    for name in ("train", "probe", "test"):
        write(folder / f"{name}.jsonl", f"problems {name}\n")


def train(run: Path, config: dict[str, Any]) -> None:
    draw, alpha = random.Random(str(config["exposure"])), config["exposure"]["fixed"]
    names = ("rollout/length", "distill/kl", "probe/nll", "student/entropy", "rollout/accuracy")
    lines = [{"update": update, "exposure/alpha": alpha} | {name: draw.random() for name in names} for update in (1, 2, 3)]
    write(run / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write(run / "summary.json", json.dumps({"seconds": 1.0, "exposure_share": 0.0, "padding": "x" * 200}))
    print("trained", flush=True)


def check(out: Path, alphas: list[float], decides: str) -> None:
    draw = random.Random(decides)
    changes = [{"alpha": alpha, "probe_nll": draw.random(), "accuracy": draw.random(), "accuracy_error": None} for alpha in alphas]
    write(out.with_suffix(".partial"), json.dumps({"updates": 2, "changes": changes}))
    out.with_suffix(".partial").replace(out)


def evaluate(out: Path, decides: str) -> None:
    accuracy = random.Random(decides).random()
    part = {"problems": 10, "average_at_k": accuracy, "greedy": accuracy / 2}
    out.mkdir(exist_ok=True)
    whole = json.dumps(part | {"by_difficulty": {"2": part, "3": part | {"average_at_k": accuracy / 3}}})
    write(out / "evaluation.json.partial", whole)
    (out / "evaluation.json.partial").replace(out / "evaluation.json")
    print("evaluated", flush=True)


def write(path: Path, text: str) -> None:
    """Slowly, in three pieces."""
    with path.open("w") as file:
        for start in range(0, len(text), len(text) // 3 + 1):
            file.write(text[start : start + len(text) // 3 + 1])
            file.flush()
            time.sleep(PAUSE)


if __name__ == "__main__":
    main()
