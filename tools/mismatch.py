"""How far is the student from its teacher at each exposure α? One set of responses, judged by the teacher at each α, on any checkpoint.

torchrun --nproc-per-node N tools/mismatch.py --config FILE --model DIR --data FILE --alphas 0,.25,.5,.75,1 --out DIR

The model is a Megatron model folder, a checkpoint of a run, a run directory (its newest checkpoint) or a Hugging Face folder. Prompts,
sampling, distillation and layout are those of a training: --config (its YAML) and --section.key overrides. The teacher has the weights
that the checkpoint keeps for it; a folder without them gives both roles the same weights, as at the start of a training, but that of
a checkpoint of adapters is their base.

Prints a table, and writes mismatch.json and mismatch.png (which needs matplotlib). docs/mismatch.md says what they hold.
"""

import argparse
import importlib.util
import json
import os

from rich.console import Console

from megatron_atesd.config import load_config
from megatron_atesd.config.exposures import exposures
from megatron_atesd.errors import ConfigError, run_command
from megatron_atesd.logs import add_log_level
from megatron_atesd.paths import user_path
from megatron_atesd.train.mismatch_flags import DECIDED

WIDTH = 140  # of the table where the output is no terminal


def main() -> None:
    a, rest = parse()
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("drawing needs matplotlib: pip install -e '.[plots]' in this project's checkout")
    if a.bench < 0:
        raise ConfigError(f"--bench is {a.bench}, must be 0 or more")
    alphas, settings = exposures(a.alphas), load_config(rest, DECIDED)
    from megatron_atesd.train.mismatch_inputs import Measurement, read_inputs  # slow to import: torch, megatron.core

    task = Measurement(a.model, a.data, a.out, alphas, a.problems, a.samples, a.seed, settings)
    inputs = read_inputs(task, int(os.environ.get("WORLD_SIZE", "1")))
    from benchmarks.mismatch import cost_lines, curve_cost
    from megatron_atesd.evaluate.responses import write_whole
    from megatron_atesd.parallel.agreement import on_rank_0
    from megatron_atesd.parallel.groups import is_main
    from megatron_atesd.parallel.session import session_of
    from megatron_atesd.report.mismatch_figure import mismatch_figure
    from megatron_atesd.report.pictures import save
    from megatron_atesd.train.failure import failing_visibly
    from megatron_atesd.train.mismatch import Mismatch
    from megatron_atesd.train.mismatch_curve import mismatch_table

    with failing_visibly(), session_of(inputs.config.parallel, task.seed):
        measured = Mismatch(task, inputs)
        record = measured.record()
        if a.bench:
            record["cost"] = curve_cost(measured, a.bench)
        text = (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()
        on_rank_0(lambda: write_whole(a.out / "mismatch.json", text), f"--out {a.out} cannot be written")
        if is_main():
            Console(width=max(WIDTH, Console().width)).print(mismatch_table(record), *cost_lines(record.get("cost")), sep="\n")
            save(mismatch_figure(record), a.out / "mismatch.png")
            print(f"written to {a.out / 'mismatch.json'} and mismatch.png")


def parse() -> tuple[argparse.Namespace, list[str]]:
    """The command's own options, and the settings for load_config."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add_log_level(parser)
    add = parser.add_argument
    add("--model", type=user_path, required=True, help="model folder")
    add("--data", type=user_path, required=True, help="problem file (JSONL) with worked solutions")
    add("--out", type=user_path, required=True, help="folder for mismatch.json and mismatch.png; one measurement a folder")
    add("--alphas", default="0,0.25,0.5,0.75,1", metavar="α,…", help="exposures, rising (default 0,0.25,0.5,0.75,1)")
    add("--problems", type=int, default=64, metavar="N", help="the first so many problems of the file (default 64; 0 = all)")
    add("--samples", type=int, default=1, metavar="N", help="responses a problem (default 1)")
    add("--seed", type=int, default=1, help="seed of the responses, and of exposure.reference shuffled")
    add("--bench", type=int, default=0, metavar="N", help="also time the curve N times, and each exposure alone (default 0: not)")
    return parser.parse_known_args()


if __name__ == "__main__":
    run_command(main)
