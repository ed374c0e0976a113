"""Compare exposure settings on simulated students, in seconds, before a run: regret 0 is perfect, 1 is a random exposure.

python tools/simulate_controller.py --updates 100 --vary hold=1,2,5 --vary lr=0.005,0.01 [--optima 0.3,0.8] [--out FILE]
"""

import argparse
import json
from pathlib import Path
from typing import Any

from megatron_atesd.config import ExposureConfig
from megatron_atesd.config_load import load_config
from megatron_atesd.errors import ConfigError, run_command
from megatron_atesd.exposure.simulation import StudentModel, compare


def parse_variation(text: str) -> tuple[str, list[Any]]:
    """`name=value,value` as the setting's name and its values. Raises ConfigError as the settings file would."""
    name, _, values = text.partition("=")
    if not values:
        raise ConfigError(f"--vary {text}: write an exposure setting and its values, for example hold=1,2")
    return name, [getattr(load_config([f"--exposure.{name}={value}"]).exposure, name) for value in values.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=100, help="student updates of a run")
    parser.add_argument("--seeds", type=int, default=20, help="runs averaged")
    parser.add_argument("--optima", default="0.3,0.8", metavar="A,A", help="exposures of fastest progress, one simulated student each")
    parser.add_argument(
        "--training-noise", type=float, default=StudentModel.training_noise, help="SD of one update's true drop, nats per token"
    )
    parser.add_argument(
        "--vary", action="append", default=[], metavar="NAME=V,V", help="exposure setting and its values; repeat for a grid"
    )
    parser.add_argument("--out", type=Path, help="also write the rows to this JSON file")
    args = parser.parse_args()
    optima = [float(optimum) for optimum in args.optima.split(",")]
    if min(args.updates, args.seeds) < 1 or not all(0 <= optimum <= 1 for optimum in optima):
        raise ConfigError(
            f"--updates {args.updates}, --seeds {args.seeds}, --optima {args.optima}: need at least 1, 1, and values from 0 to 1"
        )
    vary = dict(parse_variation(text) for text in args.vary)
    rows = []
    print("regret  final  " + "  ".join(f"α@{optimum:g}" for optimum in optima) + "  settings")
    for row in compare(ExposureConfig(), vary, StudentModel(training_noise=args.training_noise), optima, args.updates, args.seeds):
        alphas = "  ".join(f"{figures['final_alpha']:5.2f}" for figures in row["at"].values())
        settings = " ".join(f"{name}={value}" for name, value in row["settings"].items())
        print(f"{row['regret']:6.2f} {row['final_regret']:6.2f}  {alphas}  {settings or 'defaults'}", flush=True)
        rows.append(row)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
