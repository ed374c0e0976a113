"""Gather the quickstart's evaluations and metrics into summary.json and report.png, and tell where everything is.

python -m examples.quickstart.summarize --out runs/quickstart --tasks late det --arms aligned fixed --seconds 300
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from megatron_atesd.errors import run_command
from megatron_atesd.paths import user_path
from megatron_atesd.report.quickstart_figure import arm_label, quickstart_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=user_path, required=True, help="the quickstart's folder")
    parser.add_argument(
        "--tasks", nargs="+", required=True, help="kinds of references that were trained on; the first gives the headline figures"
    )
    parser.add_argument(
        "--arms", nargs="+", required=True, help="exposure modes that were trained on each; the first gives the headline figures"
    )
    parser.add_argument("--seconds", type=float, required=True, help="wall time of the whole job")
    a = parser.parse_args()
    base = json.loads((a.out / "base/evaluation.json").read_text())
    tasks = {task: {arm: arm_summary(run_folder(a.out, task, arm), base) for arm in a.arms} for task in a.tasks}
    arms = tasks[a.tasks[0]]
    summary = headline(arms[a.arms[0]], a.arms[0], a.tasks[0], a.seconds) | {"arms": arms, "tasks": tasks}
    (a.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    quickstart_report(summary, a.out / "report.png")
    tell(a.out, summary, base)


def run_folder(out: Path, task: str, arm: str) -> Path:
    """Where run.sh trains an arm: the name without suffix is the task late's."""
    return out / (arm if task == "late" else f"{arm}-{task}")


def arm_summary(run: Path, base: dict[str, Any]) -> dict[str, Any]:
    """Evaluations before and after one arm's training, what its exposure did, and what choosing it cost."""
    final = json.loads((run / "evaluation/evaluation.json").read_text())
    training = json.loads((run / "summary.json").read_text())
    kept = ("updates", "seconds", "exposure_seconds", "probe_seconds", "exposure_share", "controller_updates", "exposure_trace")
    return {"base": base, "final": final, "run": str(run)} | {key: training[key] for key in kept}


def headline(arm: dict[str, Any], name: str, task: str, seconds: float) -> dict[str, Any]:
    """The main arm's figures under the names that scripts look for."""
    figures: dict[str, Any] = {"arm": name, "task": task}
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


def accuracy_table(tasks: dict[str, dict[str, Any]], base: dict[str, Any]) -> Table:
    """Rich table in percent: the base, then each task's arms after training, the mean α of the last fifth of the updates, and its cost."""
    table = Table(title=f"{base['problems']} held-out problems")
    for column in ("task", "exposure", "sampled", "95 %", "greedy", "last α", "control"):
        table.add_column(column, justify="left" if column in ("task", "exposure") else "right")
    table.add_row("", "before", *_cells(base), "", "")
    for task, arms in tasks.items():
        table.add_section()
        for name, arm in arms.items():
            last = arm["exposure_trace"][4 * arm["updates"] // 5 :]
            table.add_row(task, arm_label(name), *_cells(arm["final"]), f"{sum(last) / len(last):.2f}", _percent(arm["exposure_share"]))
    return table


def _cells(evaluation: dict[str, Any]) -> list[str]:
    low, high = evaluation["ci95"]
    return [_percent(evaluation["average_at_k"]), f"{_percent(low)} – {_percent(high)}", _percent(evaluation["greedy"])]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def tell(out: Path, summary: dict[str, Any], base: dict[str, Any]) -> None:
    Console().print(accuracy_table(summary["tasks"], base))
    print(
        "sampled, greedy: accuracy, %; last α: mean over the last fifth of the updates; control: seconds for choosing α and for the probe,"
    )
    print("% of the updates' other seconds")
    print(f"took {summary['seconds']:.0f} s; results in {out}/summary.json, picture in {out}/report.png")
    print(f"TensorBoard: tensorboard --logdir {out}")


if __name__ == "__main__":
    run_command(main)
