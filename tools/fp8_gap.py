"""What FP8 costs in quality on your model and problems: each recipe against model.dtype, with the same weights, prompts and responses.

torchrun --nproc-per-node N tools/fp8_gap.py --config FILE [--section.key value …] [--problems 32] [--exposure 1.0] [--recipes NAME,…]

KL: nats a response token between the two precisions, over the whole vocabulary at temperature 1, for the student's prompts and for the
teacher's. loss: relative change of the distillation loss when the student, the teacher or both are in FP8. gradient: of the student with
both in FP8, cosine to and norm over the one without. Both roles have the weights of model.path; the student answers in model.dtype.
"""

import argparse
import json
import os
from dataclasses import asdict

from rich.console import Console

from megatron_atesd.config import load_config
from megatron_atesd.errors import ConfigError, run_command
from megatron_atesd.logs import add_log_level
from megatron_atesd.paths import user_path


def main() -> None:
    args, settings = parse()
    if args.problems < 1 or not 0 <= args.exposure <= 1:
        raise ConfigError(f"--problems is {args.problems}, must be 1 or more; --exposure is {args.exposure}, must be from 0 to 1")
    config = load_config(settings)
    from benchmarks.fp8_gap import for_comparison, fp8_gaps, gap_table, usable  # slow to import: torch, megatron.core
    from benchmarks.settings import check_out
    from megatron_atesd.parallel.groups import is_main
    from megatron_atesd.parallel.session import session_of
    from megatron_atesd.train.checks import check_before_work
    from megatron_atesd.train.training_run import TrainingRun

    check_out(args.out)
    config = for_comparison(config, args.problems)
    inputs = check_before_work(config, int(os.environ.get("WORLD_SIZE", "1")))
    recipes = usable(config, inputs.model.architecture, args.recipes.split(",") if args.recipes else [])
    with session_of(config.parallel, config.run.seed):
        run = TrainingRun(config, inputs)
        rollouts = run.rollout(run.sampler.batch_at(0), run.sampler.place_at(0))
        gaps = fp8_gaps(run, run.examples(rollouts, run.contexts(rollouts, args.exposure)), recipes)
        if is_main():
            Console().print(gap_table(gaps, config.model.dtype))
            if args.out:
                args.out.write_text(json.dumps({"problems": args.problems, "gaps": [asdict(gap) for gap in gaps]}, indent=2) + "\n")


def parse() -> tuple[argparse.Namespace, list[str]]:
    """The command's own options, and the settings for load_config."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add_log_level(parser)
    add = parser.add_argument
    add("--problems", type=int, default=32, metavar="N", help="problems of data.train, in place of data.batch (default 32)")
    add("--exposure", type=float, default=1.0, metavar="α", help="reveal ratio of the teacher's prompts (default 1)")
    add("--recipes", default="", metavar="NAME,…", help="of section precision, such as fp8_blockwise (default: all that run here)")
    add("--out", type=user_path, metavar="FILE", help="also write the table to this JSON file")
    return parser.parse_known_args()


if __name__ == "__main__":
    run_command(main)
