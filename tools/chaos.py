"""Kill a training job at random moments, also amid its saves, restart it, and compare with a run that was left alone.

python tools/chaos.py --out DIR --kills 30 --kills-in-save 10 --config FILE [--section.key value …]

What is not an option of this tool goes to tools/train.py as it is; run.dir, checkpoint.keep and checkpoint.resume are set here. Choose a
job of a minute or less that saves often (checkpoint.every 1) and gives the same result each time (CPU; a fixed seed).
Half of the kills hit one rank, the others the launcher and all ranks, always by SIGKILL. Passes (exit code 0) when no finished checkpoint
was lost or damaged, and every run ended in the unbroken run's weights, optimizer, controller and metrics, bit for bit.
"""

import argparse
import json
from dataclasses import fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

from megatron_atesd.errors import ConfigError, run_command
from megatron_atesd.faults.chaos import Chaos, KillPlan

HELP = {
    "processes": "ranks of the job",
    "kills": "in all",
    "kills_in_save": "at least so many of them while a checkpoint is written",
    "kills_a_run": "then a run may finish, and the next begins",
    "seed": "of moments and victims",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="new or empty folder for runs and logs, and for chaos.json")
    defaults = {field.name: field.default for field in fields(KillPlan) if field.name in HELP}
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"{HELP[name]} (default {default})")
    options, arguments = parser.parse_known_args()
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise ConfigError(f"--out {options.out} must be a new or an empty folder")
    for name in ("processes", "kills_a_run"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(options, name)}, must be 1 or more")
    options.out.mkdir(parents=True, exist_ok=True)
    plan = KillPlan(arguments, options.out.resolve(), **{name: getattr(options, name) for name in defaults})
    report = Chaos(plan, Console(stderr=True).print).execute()
    (options.out / "chaos.json").write_text(json.dumps(report, indent=2) + "\n")
    table = Table("", "")
    for name, value in report.items():
        table.add_row(name.replace("_", " "), "\n".join(value) or "none" if isinstance(value, list) else f"{value:.4g}")
    Console().print(table)
    raise SystemExit(1 if report["lost"] or report["different"] else 0)


if __name__ == "__main__":
    run_command(main)
