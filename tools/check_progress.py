"""Is my progress signal biased? Some updates at each of α = 0, 0.5 and 1 from model.path: do the signals order them as accuracy does?

torchrun --nproc-per-node N tools/check_progress.py --config FILE [--section.key value …] [--updates 20] [--out FILE]

Settings are those of tools/train.py; problems and rollout seeds are the same at each exposure. Nothing stays in run.dir. Costs three times
so many updates, four times 4 responses to each probe problem, exposure.probe_samples more at the start, and disk for one checkpoint.
"""

import argparse
import os

from rich.console import Console

from megatron_atesd.config import load_config, validate
from megatron_atesd.errors import AtesdError, ConfigError, run_command
from megatron_atesd.paths import user_path


def main() -> None:
    args, settings = parse()
    if args.updates < 1:
        raise ConfigError(f"--updates is {args.updates}, must be 1 or more")
    config = load_config([*settings, f"--exposure.bias_check={args.updates}"])
    world = int(os.environ.get("WORLD_SIZE", "1"))
    validate(config, world)
    from benchmarks.settings import check_out  # torch and megatron.core are slow to import: first check the settings
    from megatron_atesd.parallel.groups import is_main
    from megatron_atesd.parallel.session import session_of
    from megatron_atesd.train.bias_check import check_bias, cost, save_record
    from megatron_atesd.train.checks import check_before_work
    from megatron_atesd.train.failure import failing_visibly
    from megatron_atesd.train.heartbeat import Heartbeat
    from megatron_atesd.train.preemption import StopRequest
    from megatron_atesd.train.training_run import TrainingRun

    check_out(args.out)
    inputs = check_before_work(config, world)
    parallel = config.parallel
    console = Console(markup=False, highlight=False, soft_wrap=True)
    with failing_visibly(), session_of(parallel, config.run.seed), Heartbeat(parallel.timeout_minutes) as heartbeat, StopRequest() as stop:
        run = TrainingRun(config, inputs)
        if is_main():
            console.print(cost(run))
        check = check_bias(run, heartbeat, stop.agreed)
        if check is None:
            raise AtesdError(f"stopped by {stop.agreed()} before the check was done; nothing of it is left")
        if is_main():
            console.print("\n".join(check.lines()))
        if args.out:
            save_record(check, args.out)


def parse() -> tuple[argparse.Namespace, list[str]]:
    """The command's own options, and the settings for load_config."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("--updates", type=int, default=20, metavar="N", help="updates at each exposure (default 20)")
    add("--out", type=user_path, metavar="FILE", help="also write the table and the sentence to this JSON file")
    return parser.parse_known_args()


if __name__ == "__main__":
    run_command(main)
