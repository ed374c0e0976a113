"""Compare exposure settings on simulated students, in seconds, before a run: regret 0 is perfect, 1 is a random exposure.

python tools/simulate_controller.py --updates 100 --vary hold=1,2,5 --vary lr=0.005,0.01 [--optima 0.3,0.8] [--out FILE]
python tools/simulate_controller.py --vary mode=learned,posterior,random --momentum 0.9 --probe-noise 2e-5
"""

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

from megatron_atesd.config import ExposureConfig, load_config
from megatron_atesd.errors import ConfigError, run_command
from megatron_atesd.exposure.simulation import StudentModel, compare
from megatron_atesd.paths import user_path

# What of a simulated student can be set; the spread of best and worst against the noise is the strength of the signal.
STUDENT = {
    "best": "drop of the probe NLL in an update at the best exposure, nats per token",
    "worst": "drop in an update at the worst exposure, nats per token",
    "training_noise": "SD of one update's true drop, nats per token",
    "probe_noise": "SD of one measurement of the probe NLL, nats per token",
    "momentum": "share of an update's motion that the next keeps, below 1; 0.9 is Adam's",
}


def parse_variation(text: str) -> tuple[str, list[Any]]:
    """`name=value,value` as the setting's name and its values. Raises ConfigError as the settings file would."""
    name, _, values = text.partition("=")
    if not values:
        raise ConfigError(f"--vary {text}: write an exposure setting and its values, for example hold=1,2")
    return name, [getattr(load_config([f"--exposure.{name}={value}"]).exposure, name) for value in values.split(",")]


def parse_optima(text: str) -> list[float]:
    """`A,A` as exposures. Raises ConfigError for anything else."""
    try:
        optima = [float(optimum) for optimum in text.split(",")]
    except ValueError:
        optima = []
    if not optima or not all(0 <= optimum <= 1 for optimum in optima):
        raise ConfigError(f"--optima is {text!r}, must be exposures from 0 to 1 with commas between them, for example 0.3,0.8")
    return optima


def check_numbers(updates: int, seeds: int, student: StudentModel) -> None:
    """Raise ConfigError for the first number out of its bounds."""
    for flag, count in (("--updates", updates), ("--seeds", seeds)):
        if count < 1:
            raise ConfigError(f"{flag} is {count}, must be 1 or more")
    for name in STUDENT:
        value = getattr(student, name)
        if not (value >= 0 and math.isfinite(value)):
            raise ConfigError(f"{_flag(name)} is {value}, must be 0 or more")
    if student.momentum >= 1:
        raise ConfigError(f"--momentum is {student.momentum}, must be below 1")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def check_out(out: Path) -> None:
    """Raise ConfigError, before the work, for a file that could not be written after it."""
    if out.is_dir():
        raise ConfigError(f"--out is {out}, which is a folder; give a file to write to")
    if not out.parent.is_dir():
        raise ConfigError(f"--out is {out}, but there is no folder {out.parent}; make it, or choose another file")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise ConfigError(f"--out is {out}, which cannot be written to; choose another file")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=100, help="student updates of a run")
    parser.add_argument("--seeds", type=int, default=20, help="runs averaged")
    parser.add_argument("--optima", default="0.3,0.8", metavar="A,A", help="exposures of fastest progress, one simulated student each")
    for name, meaning in STUDENT.items():
        parser.add_argument(_flag(name), type=float, default=getattr(StudentModel, name), help=meaning + "; default %(default)s")
    parser.add_argument(
        "--vary", action="append", default=[], metavar="NAME=V,V", help="exposure setting and its values; repeat for a grid"
    )
    parser.add_argument("--out", type=user_path, help="also write the rows to this JSON file")
    args = parser.parse_args()
    student = StudentModel(**{name: getattr(args, name) for name in STUDENT})
    check_numbers(args.updates, args.seeds, student)
    if args.out:
        check_out(args.out)
    optima = parse_optima(args.optima)
    vary = dict(parse_variation(text) for text in args.vary)
    try:
        simulated = compare(ExposureConfig(), vary, student, optima, args.updates, args.seeds)
    except ConfigError as error:
        raise ConfigError(f"--vary {error}") from None
    rows = []
    print("regret  final  " + "  ".join(f"α@{optimum:g}" for optimum in optima) + "  settings")
    for row in simulated:
        alphas = "  ".join(f"{figures['final_alpha']:5.2f}" for figures in row["at"].values())
        settings = " ".join(f"{name}={value}" for name, value in row["settings"].items())
        print(f"{row['regret']:6.2f} {row['final_regret']:6.2f}  {alphas}  {settings or 'defaults'}", flush=True)
        rows.append(row)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
