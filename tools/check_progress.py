"""Is my progress signal biased? Some updates at each of α = 0, 0.5 and 1 from model.path: do the signals order them as accuracy does?

torchrun --nproc-per-node N tools/check_progress.py --config FILE [--section.key value …] [--updates 20] [--alphas 0,.5,1] [--out FILE]
torchrun --nproc-per-node N tools/check_progress.py --config FILE --lead 50 --lead-alpha .5     # later in a training

Settings are those of tools/train.py; problems and rollout seeds are the same at each exposure. Nothing stays in run.dir. An exposure costs
so many updates and 4 responses to each probe problem. Besides there are 4 such responses and exposure.probe_samples more at the start,
and disk for one checkpoint.
"""

import argparse
import os

from rich.console import Console

from megatron_atesd.config import load_config, validate
from megatron_atesd.config.exposures import exposures
from megatron_atesd.errors import AtesdError, ConfigError, run_command
from megatron_atesd.logs import add_log_level
from megatron_atesd.paths import user_path


def main() -> None:
    args, settings = parse()
    check_options(args)
    alphas = exposures(args.alphas)
    config = load_config([*settings, f"--exposure.bias_check={args.updates}"])
    world = int(os.environ.get("WORLD_SIZE", "1"))
    validate(config, world)
    if args.lead + args.updates > config.run.updates:
        raise ConfigError(
            f"--lead {args.lead} and --updates {args.updates} are more than run.updates {config.run.updates}; raise run.updates"
        )
    from benchmarks.settings import check_out  # torch and megatron.core are slow to import: first check the settings
    from megatron_atesd.parallel.groups import is_main
    from megatron_atesd.parallel.session import session_of
    from megatron_atesd.train.bias_check import check_bias, cost, lead_in, save_record
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
            console.print(cost(run, alphas, args.lead))
        own = lead_in(run, heartbeat, stop.agreed, args.lead_alpha, args.lead)
        check = own and check_bias(run, heartbeat, stop.agreed, alphas, own, args.lead)
        if check is None:
            raise AtesdError(f"stopped by {stop.agreed()} before the check was done; nothing of it is left")
        if is_main():
            console.print("\n".join(check.lines()))
        if args.out:
            save_record(check, args.out)


def check_options(args: argparse.Namespace) -> None:
    """Raise ConfigError for the first number out of its bounds."""
    for flag, value, low in (("--updates", args.updates, 1), ("--lead", args.lead, 0)):
        if value < low:
            raise ConfigError(f"{flag} is {value}, must be {low} or more")
    if not 0 <= args.lead_alpha <= 1:
        raise ConfigError(f"--lead-alpha is {args.lead_alpha}, must be from 0 to 1")


def parse() -> tuple[argparse.Namespace, list[str]]:
    """The command's own options, and the settings for load_config."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add_log_level(parser)
    add = parser.add_argument
    add("--updates", type=int, default=20, metavar="N", help="updates at each exposure (default 20)")
    add("--alphas", default="0,0.5,1", metavar="α,…", help="the exposures, rising (default 0,0.5,1)")
    add("--lead", type=int, default=0, metavar="N", help="updates before the check (default 0)")
    add("--lead-alpha", type=float, default=0.5, metavar="A", help="their exposure (default 0.5)")
    add("--out", type=user_path, metavar="FILE", help="also write the table and the sentence to this JSON file")
    return parser.parse_known_args()


if __name__ == "__main__":
    run_command(main)
