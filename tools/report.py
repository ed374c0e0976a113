"""Write the report of one or several training runs: numbers, pictures, samples, settings, in one HTML file for any browser.

python tools/report.py runs/atesd                                  # writes runs/atesd/report.html, as a finished training has it
python tools/report.py runs/a runs/b --out compare.html            # side by side, one colour a run
python tools/report.py runs/a --evaluation runs/base/aime25        # with an evaluation that is not below the run directory
"""

import argparse
import importlib.util
from pathlib import Path

from megatron_atesd.errors import ConfigError, run_command
from megatron_atesd.logs import add_log_level
from megatron_atesd.paths import user_path
from megatron_atesd.report.run_files import names_of


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_log_level(parser)
    parser.add_argument("runs", nargs="+", type=user_path, metavar="RUN", help="run directory (with metrics.jsonl)")
    parser.add_argument("--out", type=user_path, help="page to write, .html (default: report.html in the run; needed for several)")
    parser.add_argument(
        "--evaluation", nargs="+", type=user_path, default=[], metavar="FOLDER", help="folders with an evaluation.json, to be shown too"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("a report needs matplotlib: pip install -e '.[plots]' in this project's checkout")
    if args.out is None and len(args.runs) > 1:
        raise ConfigError(f"{len(args.runs)} runs and no --out: say where the page goes, for example --out compare.html")
    out: Path = args.out or args.runs[0] / "report.html"
    if out.suffix not in (".html", ".htm"):
        raise ConfigError(f"--out {out}: the name must end in .html")
    if missing := [folder for folder in args.evaluation if not (folder / "evaluation.json").is_file()]:
        raise ConfigError(f"--evaluation {missing[0]}: there is no evaluation.json in it; give a folder that tools/evaluate.py wrote")
    from megatron_atesd.report.page import write_report

    write_report(names_of(args.runs), out, args.evaluation)
    print(f"wrote {out}")


if __name__ == "__main__":
    run_command(main)
