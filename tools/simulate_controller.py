"""Compare rules for exposure on simulated students, before a run: regret 0 is perfect, 1 is a random exposure.

python tools/simulate_controller.py --study --jobs 2 [--out FILE.json] [--picture FILE.png]
python tools/simulate_controller.py --updates 100 --vary hold=1,2,5 --vary lr=0.005,0.01 [--optima 0.3,0.8] [--out FILE.json]
python tools/simulate_controller.py --vary mode=learned,posterior,random --momentum 0.9 --probe-noise 2e-5

--study compares all modes on stationary, moving, delayed, lopsided and flat students and on two difficulty bins, at several lengths.
All modes have the same hold, so that equal decisions are equal updates, and meet the same noise. Without it, settings of your own are
compared on students whose progress is fastest at --optima (0.9/0.2: two bins, easiest first, for bins=2 or for one α).
"""

import argparse
import importlib.util
import json
import math
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from megatron_atesd.config import ExposureConfig, load_config
from megatron_atesd.errors import ConfigError, run_command
from megatron_atesd.exposure.simulated_student import StudentModel, in_bins
from megatron_atesd.exposure.simulation_figures import compare
from megatron_atesd.exposure.simulation_study import cases, choices, parts, results
from megatron_atesd.exposure.simulation_work import progress, work
from megatron_atesd.logs import add_log_level
from megatron_atesd.paths import user_path
from megatron_atesd.report.simulation_tables import tables

# What of a simulated student can be set; the spread of best and worst against the noise is the strength of the signal.
STUDENT = {
    "best": "drop of the probe NLL in an update at the best exposure, nats per token",
    "worst": "drop in an update at the worst exposure, nats per token",
    "training_noise": "SD of one update's true drop, nats per token",
    "probe_noise": "SD of one measurement of the probe NLL, nats per token",
    "momentum": "share of an update's motion that the next keeps, below 1; 0.9 is Adam's",
    "lasting": "share of the variance of the error of mode aligned's scores that stays the same for a whole run; an assumption",
}
# Flags of one of the two uses alone, with their defaults.
OF_STUDY: dict[str, Any] = {"decisions": "25,50,100,200", "hold": 5, "jobs": 1, "picture": None}
OF_SETTINGS: dict[str, Any] = {"updates": 100, "optima": "0.3,0.8", "vary": []}
SEEDS = {True: 100, False: 20}  # with --study, and without
RHOS = {True: "0.3,0.6", False: "0.3"}
SUFFIXES = (".png", ".svg", ".pdf")


def parse_variation(text: str) -> tuple[str, list[Any]]:
    """`name=value,value` as the setting's name and its values. Raises ConfigError as the settings file would."""
    name, _, values = text.partition("=")
    if not values:
        raise ConfigError(f"--vary {text}: write an exposure setting and its values, for example hold=1,2")
    return name, [getattr(load_config([f"--exposure.{name}={value}"]).exposure, name) for value in values.split(",")]


def parse_shares(flag: str, text: str, what: str, separator: str = ",") -> list[float]:
    """Numbers from 0 to 1. Raises ConfigError for anything else, with the words `what` for a right one."""
    try:
        shares = [float(share) for share in text.split(separator)]
    except ValueError:
        shares = []
    if not shares or not all(0 <= share <= 1 for share in shares):
        raise ConfigError(f"{flag} is {text!r}, must be {what}")
    return shares


def parse_optima(text: str, student: StudentModel) -> dict[str, tuple[StudentModel, ...]]:
    """`A,A/A` as simulated students by name, one for each difficulty bin. Raises ConfigError for anything else."""
    what = "exposures from 0 to 1 with commas between them, for example 0.3,0.8"
    try:
        optima = [parse_shares("--optima", part, what, "/") for part in text.split(",")]
    except ConfigError:
        raise ConfigError(f"--optima is {text!r}, must be {what}") from None
    return {"/".join(f"{optimum:g}" for optimum in bins): in_bins(student, bins) for bins in optima}


def parse_counts(flag: str, text: str) -> list[int]:
    """Rising numbers of 1 or more. Raises ConfigError for anything else."""
    words = text.split(",")
    counts = [int(word) for word in words] if all(word.isascii() and word.isdigit() for word in words) else []
    if not counts or counts[0] < 1 or counts != sorted(set(counts)):
        raise ConfigError(f"{flag} is {text!r}, must be rising numbers of 1 or more with commas between them, for example 25,50")
    return counts


def check_numbers(args: argparse.Namespace, student: StudentModel) -> None:
    """Raise ConfigError for the first number out of its bounds."""
    for name in ("updates", "seeds", "hold", "jobs"):
        if getattr(args, name) < 1:
            raise ConfigError(f"{_flag(name)} is {getattr(args, name)}, must be 1 or more")
    for name in STUDENT:
        value = getattr(student, name)
        if not (value >= 0 and math.isfinite(value)):
            raise ConfigError(f"{_flag(name)} is {value}, must be 0 or more")
    if student.momentum >= 1:
        raise ConfigError(f"--momentum is {student.momentum}, must be below 1")
    if student.lasting > 1:
        raise ConfigError(f"--lasting is {student.lasting}, must be at most 1")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def check_file(flag: str, out: Path) -> None:
    """Raise ConfigError, before the work, for a file that could not be written after it."""
    if out.is_dir():
        raise ConfigError(f"{flag} is {out}, which is a folder; give a file to write to")
    if not out.parent.is_dir():
        raise ConfigError(f"{flag} is {out}, but there is no folder {out.parent}; make it, or choose another file")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise ConfigError(f"{flag} is {out}, which cannot be written to; choose another file")


def check_picture(picture: Path) -> None:
    """Raise ConfigError, before the work, for a picture that could not be drawn after it."""
    if picture.suffix not in SUFFIXES:
        raise ConfigError(f"--picture {picture}: the name must end in one of {', '.join(SUFFIXES)}")
    check_file("--picture", picture)
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--picture needs matplotlib: pip install -e '.[plots]' in this project's checkout")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add_log_level(parser)
    add = parser.add_argument
    add("--study", action="store_true", help="compare all modes on all kinds of simulated students")
    add("--seeds", type=int, help="runs averaged; default 20, with --study 100")
    add(
        "--rho", metavar="R,R", help="correlation of mode aligned's scores with the truth, an assumption; default 0.3, with --study 0.3,0.6"
    )
    for name, meaning in STUDENT.items():
        add(_flag(name), type=float, default=getattr(StudentModel, name), help=meaning + "; default %(default)s")
    add("--out", type=user_path, metavar="FILE", help="also write the rows to this JSON file")
    study = parser.add_argument_group("with --study").add_argument
    study("--decisions", metavar="N,N", help="lengths of the runs, in decisions; default 25,50,100,200")
    study("--hold", type=int, metavar="N", help="updates that every mode holds a decision; default 5")
    study("--jobs", type=int, metavar="N", help="processes side by side; default 1")
    study("--picture", type=user_path, metavar="FILE", help="also draw regret against decisions: .png, .svg or .pdf")
    own = parser.add_argument_group("without --study").add_argument
    own("--updates", type=int, help="student updates of a run; default 100")
    own("--optima", metavar="A,A", help="exposures of fastest progress, one simulated student each; default 0.3,0.8")
    own("--vary", action="append", metavar="NAME=V,V", help="exposure setting and its values; repeat for a grid")
    return _completed(parser.parse_args())


def _completed(args: argparse.Namespace) -> argparse.Namespace:
    """With the defaults of this use. Raises ConfigError for a flag of the other use."""
    for name in OF_SETTINGS if args.study else OF_STUDY:
        if getattr(args, name) is not None:
            raise ConfigError(f"{_flag(name)} is not for use {'with' if args.study else 'without'} --study; leave one of the two out")
    defaults = OF_STUDY | OF_SETTINGS | {"seeds": SEEDS[args.study], "rho": RHOS[args.study]}
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def main() -> None:
    args = parse()
    student = StudentModel(**{name: getattr(args, name) for name in STUDENT})
    check_numbers(args, student)
    if args.out:
        check_file("--out", args.out)
    rhos = parse_shares("--rho", args.rho, "correlations from 0 to 1 with commas between them, for example 0.3,0.6")
    torch.set_num_threads(1)  # everything here is small
    found = run_study(args, student, rhos) if args.study else compare_settings(args, student, rhos)
    if args.out:
        args.out.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if args.picture:
        draw(found, args.picture)


def compare_settings(args: argparse.Namespace, student: StudentModel, rhos: Sequence[float]) -> list[dict[str, Any]]:
    """Print a row for each combination of settings, and return all."""
    if len(rhos) > 1:
        raise ConfigError(f"--rho is {args.rho}, but only --study compares several; give one")
    students = parse_optima(args.optima, replace(student, rho=rhos[0]))
    vary = dict(parse_variation(text) for text in args.vary)
    try:
        simulated = compare(ExposureConfig(), vary, students, args.updates, args.seeds)
    except ConfigError as error:
        raise ConfigError(f"--vary {error}") from None
    rows = []
    print("regret  final  " + "  ".join(f"α@{name}" for name in students) + "  settings")
    for row in simulated:
        alphas = "  ".join(f"{figures['final_alpha']:5.2f}" for figures in row["at"].values())
        regrets = " ".join(f"{'–' if regret is None else format(regret, '.2f'):>6}" for regret in (row["regret"], row["final_regret"]))
        settings = " ".join(f"{name}={value}" for name, value in row["settings"].items())
        print(f"{regrets}  {alphas}  {settings or 'defaults'}", flush=True)
        rows.append(row)
    return rows


def run_study(args: argparse.Namespace, student: StudentModel, rhos: Sequence[float]) -> dict[str, Any]:
    """Print the tables, and return what they show."""
    decisions = parse_counts("--decisions", args.decisions)
    if args.picture:
        check_picture(args.picture)
    named, students = choices(args.hold, rhos), cases(student)
    todo = parts(named, students, decisions, args.hold, args.seeds)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the processes are told to end
    found = results(named, students, todo, work(todo, args.jobs, progress()))
    for table in tables(found):
        print(table)
    return found


def draw(found: Any, picture: Path) -> None:
    """A study's picture; only this needs matplotlib."""
    from megatron_atesd.report.pictures import save
    from megatron_atesd.report.simulation_picture import study_figure

    save(study_figure(found), picture)


if __name__ == "__main__":
    run_command(main)
