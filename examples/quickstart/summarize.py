"""Gather the quickstart's evaluations and metrics into summary.json and report.png, and tell where everything is.

python -m examples.quickstart.summarize --out runs/quickstart --arms learned --seconds 300
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from megatron_atesd.errors import run_command
from megatron_atesd.evaluate.average import table
from megatron_atesd.paths import user_path
from megatron_atesd.report.run_figures import quickstart_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=user_path, required=True, help="the quickstart's folder")
    parser.add_argument("--arms", nargs="+", required=True, help="exposure modes that were trained; the first gives the headline figures")
    parser.add_argument("--seconds", type=float, required=True, help="wall time of the whole job")
    a = parser.parse_args()
    base = json.loads((a.out / "base/evaluation.json").read_text())
    arms = {arm: arm_summary(a.out / arm, base) for arm in a.arms}
    summary = headline(arms[a.arms[0]], a.arms[0], a.seconds) | {"arms": arms}
    (a.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    quickstart_report(summary, {arm: a.out / arm for arm in a.arms}, a.out / "report.png")
    tell(a.out, summary, base)


def arm_summary(run: Path, base: dict[str, Any]) -> dict[str, Any]:
    """Evaluations before and after one arm's training, and what its exposure did."""
    final = json.loads((run / "evaluation/evaluation.json").read_text())
    training = json.loads((run / "summary.json").read_text())
    return {"base": base, "final": final, "run": str(run)} | {
        key: training[key] for key in ("updates", "seconds", "controller_updates", "exposure_trace")
    }


def headline(arm: dict[str, Any], name: str, seconds: float) -> dict[str, Any]:
    """The main arm's figures under the names that scripts look for."""
    figures: dict[str, Any] = {"arm": name}
    for when in ("base", "final"):
        evaluation = arm[when]
        figures[f"{when}_average_at_k"], figures[f"{when}_average_ci95"] = evaluation["average_at_k"], evaluation["ci95"]
        figures[f"{when}_greedy"], figures[f"{when}_greedy_ci95"] = evaluation["greedy"], evaluation["greedy_ci95"]
    return figures | {
        "k": arm["final"]["samples"],
        "problems": arm["final"]["problems"],
        "ci95": {name: figures[f"{name}_ci95"] for name in ("base_average", "final_average", "base_greedy", "final_greedy")},
        "steps": arm["updates"],
        "seconds": seconds,
        "training_seconds": arm["seconds"],
        "controller_updates": arm["controller_updates"],
        "exposure_trace": arm["exposure_trace"],
    }


def tell(out: Path, summary: dict[str, Any], base: dict[str, Any]) -> None:
    rows = {"base": base} | {f"{arm} (after {s['updates']} updates)": s["final"] for arm, s in summary["arms"].items()}
    Console().print(table(rows, title="held-out problems"))
    print(f"took {summary['seconds']:.0f} s; results in {out}/summary.json, picture in {out}/report.png")
    print(f"TensorBoard: tensorboard --logdir {out}")


if __name__ == "__main__":
    run_command(main)
