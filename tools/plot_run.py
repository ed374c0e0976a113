"""Draw what happened in one or several training runs: KL, reveal ratio, probe NLL and exposure policy.

python tools/plot_run.py runs/atesd                       # writes runs/atesd/run.png
python tools/plot_run.py runs/a runs/b --out compare.svg  # one colour a run
"""

import argparse
import importlib.util

from megatron_atesd.errors import ConfigError, run_command
from megatron_atesd.logs import add_log_level
from megatron_atesd.paths import user_path
from megatron_atesd.report.run_files import names_of

SUFFIXES = (".png", ".svg", ".pdf")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_log_level(parser)
    parser.add_argument("runs", nargs="+", type=user_path, metavar="RUN", help="run directory (with metrics.jsonl)")
    parser.add_argument(
        "--out", type=user_path, help="picture to write: .png, .svg or .pdf (default: run.png in the run; needed for several)"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("drawing needs matplotlib: pip install -e '.[plots]' in this project's checkout")
    if args.out is None and len(args.runs) > 1:
        raise ConfigError(f"{len(args.runs)} runs and no --out: say where the picture goes, for example --out compare.png")
    out = args.out or args.runs[0] / "run.png"
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"--out {out}: the name must end in one of {', '.join(SUFFIXES)}")
    from megatron_atesd.report.pictures import save
    from megatron_atesd.report.run_figures import run_figure

    save(run_figure(names_of(args.runs)), out)
    print(f"wrote {out}")


if __name__ == "__main__":
    run_command(main)
