"""Compare rules for exposure: arms × tasks × bases × seeds from one YAML file, with intervals, tables and pictures.

python tools/sweep_exposure.py STUDY.yaml --jobs 2
python tools/sweep_exposure.py STUDY.yaml --jobs 4 --launch "srun --exclusive --nodes 1 --ntasks 8 {python}"

Each run is a training (tools/train.py) and an evaluation (tools/evaluate.py) at one update that the file names beforehand. Killed at any
time, the same command goes on: finished parts stay, a training goes on from its checkpoint. A run that was begun with other settings than
the file has now is refused by name. docs/study.md says what the file holds.

Without --launch, scripts run in forks of one process that has everything imported, or under torchrun where the file says `processes`.
Writes results.json, tables.md and pictures (they need matplotlib) to the folder `out`. The commands of `make` in the file are executed:
treat a study file as the script that it is.
"""

import argparse
import importlib.util
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from megatron_atesd.errors import ConfigError, run_command
from megatron_atesd.evaluate.responses import write_whole
from megatron_atesd.logs import add_log_level, is_told
from megatron_atesd.output_folder import make_writable
from megatron_atesd.paths import user_path
from megatron_atesd.study.comparison import compare
from megatron_atesd.study.decisive import check_begun
from megatron_atesd.study.design import Run, Study
from megatron_atesd.study.execution import do_all, only_one
from megatron_atesd.study.processes import ENVIRONMENT, Forks, Launcher, torchrun
from megatron_atesd.study.reading import read_study
from megatron_atesd.study.results import collect
from megatron_atesd.study.tables import around_tables, console_tables, into_readme, markdown, notes, results_text
from megatron_atesd.study.work import check_inputs, check_of, evaluation_of_base, preparation, training_of

WIDTH = 180  # of the tables where the output is no terminal


def main() -> None:
    a = parse()
    study = read_study(a.study)
    runs = chosen(study, a.only)
    if a.readme is not None:
        around_tables(a.readme)  # refused before the work
    if a.collect:
        check_there(study)
    make_writable("out", study.out)
    if not a.collect:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was launched is told to end
        with only_one(study.out):
            work(a, study, runs)
    if not a.print:
        report(study, a.readme)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add_log_level(parser)
    add = parser.add_argument
    add("study", type=user_path, metavar="STUDY.yaml", help="what to compare, see docs/study.md")
    add("--jobs", type=int, default=1, metavar="N", help="parts at work side by side (default 1)")
    add("--only", nargs="+", metavar="ARM", help="of the runs only those of these arms; the tables show all that is there")
    add(
        "--launch",
        metavar="COMMAND",
        help="words put before the path of each script, such as 'srun -n 8 {python}'; {run}: TASK-BASE-ARM-SEED",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--print", action="store_true", help="make bases and problems, then print a command line for each part that is left")
    how.add_argument("--collect", action="store_true", help="do no work: tables and pictures of what is there")
    add(
        "--readme", type=user_path, metavar="FILE", help="also put tables and pictures between the lines <!-- study --> and <!-- /study -->"
    )
    a = parser.parse_args()
    if a.jobs < 1:
        raise ConfigError(f"--jobs is {a.jobs}, must be 1 or more")
    return a


def chosen(study: Study, only: list[str] | None) -> list[Run]:
    for name in only or ():
        if name not in study.arms:
            raise ConfigError(f"--only has {name}, which is no arm of {study.file}; its arms: {', '.join(study.arms)}")
    return [run for run in study.runs() if only is None or run.arm in only]


def check_there(study: Study) -> None:
    """Raise ConfigError where nothing is there to collect, or something that was made with other settings than the study has now."""
    if not study.out.is_dir():
        raise ConfigError(
            f"--collect: out is {study.out}, which is no folder: nothing has been done yet; give the command without --collect"
        )
    check_begun(study, study.parts(), inputs=False)


def work(a: argparse.Namespace, study: Study, runs: list[Run]) -> None:
    """Whatever is not there yet."""
    console = Console(markup=False, highlight=False, soft_wrap=True, stderr=a.print)  # of --print, only commands are the output

    def say(text: str) -> None:
        if is_told():
            console.print(text)

    template = a.launch or ("{python}" if study.processes == 1 else torchrun(study.processes))
    launcher = Launcher(template)
    starter = Forks() if a.launch is None and study.processes == 1 else launcher
    checks = study.checks() if a.only is None else []
    check_begun(study, study.parts(), inputs=False)  # of other arms too: the tables show them
    do_all(preparation(study), starter, a.jobs, say)
    check_inputs(study)
    check_begun(study, study.parts(), inputs=True)
    units = [evaluation_of_base(study, task, base) for task, base in study.pairs()] + [training_of(study, run) for run in runs]
    units += [check_of(study, check) for check in checks]
    if a.print:
        for unit in units:
            if steps := unit.begin():
                print(" && ".join(shlex.join(launcher.command(step, unit.log)) for step in steps))
        return
    do_all(units, starter, a.jobs, say)


def report(study: Study, readme: Path | None) -> None:
    """Tables and pictures of what is there."""
    results: Any = collect(study)
    comparison = compare(results)
    console = Console(width=max(WIDTH, Console().width))
    for table in console_tables(results, comparison):
        console.print(table)
    for line in notes(results, comparison):
        console.print(line, markup=False, highlight=False)
    pictures = draw(results, comparison, study.out)
    text = markdown(results, comparison, [(name.replace("_", " "), path.name) for name, path in pictures.items()])
    write_whole(study.out / "results.json", results_text(results, comparison).encode())
    write_whole(study.out / "tables.md", text.encode())
    if readme is not None:
        into_readme(readme, text, list(pictures.values()))
    print(f"written to {study.out}: {', '.join(['results.json', 'tables.md', *(path.name for path in pictures.values())])}")


def draw(results: Any, comparison: Any, out: Path) -> dict[str, Path]:
    """The pictures that there is something for, by what they show."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no pictures: they need matplotlib (pip install -e '.[plots]' in this project's checkout)")
        return {}
    from megatron_atesd.report.pictures import save
    from megatron_atesd.study.pictures import figures

    drawn = figures(results, comparison)
    for name, figure in drawn.items():
        save(figure, out / f"{name}.png")
    return {name: out / f"{name}.png" for name in drawn}


if __name__ == "__main__":
    run_command(main)
