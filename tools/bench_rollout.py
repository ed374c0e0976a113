"""Speed, use of places and memory of rollouts: this project's engines and transformers' generate on the same weights and prompts.

python tools/bench_rollout.py --out bench.json
python tools/bench_rollout.py --workloads W1 --batches 64 --lengths mixed --tensors 1,2 --repeats 3

Engines: training = the model that trains, at each --tensors · vllm, where it is installed · transformers = generate(), on one padded
batch after the other. Each measurement runs in a process of its own, the engines in turns. Sampling is that of the settings' defaults.
equal: `batch` prompts, each with response_tokens of the workload. mixed: a queue of 4 × batch prompts (above 32: 2 ×) of half to all of
prompt_tokens, with responses of 16 … 512 tokens, evenly spread; `batch` of them in the making at once.
The weights are random but for a few that let a prompt's own tokens decide how long its response is (benchmarks/rollout_model.py), so
every engine stops by its stop token and generates the same tokens in number. No engine is told the lengths.
tokens/s: response tokens, stop tokens among them, over the seconds of the call with the prompts' pass (median of as many calls as
take three seconds). ÷ transformers: above 1 is faster.
processor s: of one call, all threads of all processes. On a machine with other work the seconds depend on how much of the processor was
left, these hardly. ÷ transformers: below 1 is less work.
slot use: tokens over the places computed in all decoding steps (transformers: batch × its longest response); – where the engine
does not say.
GiB: peak of the call over what was there before (resident; with CUDA what torch allocated), of the fullest process; vllm's counts from
before its engine was built, since it allocates its cache then.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from megatron_atesd.errors import ConfigError, run_command
from megatron_atesd.paths import user_path

SIZES = Path(__file__).parent / "benchmarks" / "workloads.json"


def main() -> None:
    args = parse()
    from benchmarks.rollouts import RolloutSettings, rollout_rows  # slow to import: torch
    from benchmarks.settings import software
    from benchmarks.tables import ROLLOUT_WIDTH, rollout_tables
    from benchmarks.workload import load_workloads

    workloads = load_workloads(args.sizes, args.workloads, ("--sizes", "--workloads"))
    chosen: dict[str, Any] = {name: getattr(args, name) for name in ("dtype", "threads", "repeats")}
    chosen |= {"device": args.device} if args.device else {}
    chosen |= {name: getattr(args, name).split(",") for name in ("lengths", "engines")}
    chosen |= {name: whole_numbers(name, getattr(args, name)) for name in ("batches", "tensors")}
    settings = RolloutSettings(**chosen)
    settings.check(workloads, args.out)
    rows = rollout_rows(workloads, settings, Console(stderr=True).print)
    Console(width=max(ROLLOUT_WIDTH, Console().width)).print(*rollout_tables(rows), sep="\n")
    if args.out:
        environment = dict(software(settings.device)) | asdict(settings)
        args.out.write_text(json.dumps({"environment": environment, "rows": rows}, indent=2) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--workloads", default="quickstart,W1", metavar="NAME,…", help="of the file of sizes (default quickstart,W1; also W2)")
    add("--sizes", type=user_path, default=SIZES, metavar="FILE", help="JSON file of sizes by name (default: benchmarks/workloads.json)")
    add("--batches", default="1,32,64", metavar="N,…", help="responses in the making at once (default 1,32,64; also 8 and 256)")
    add("--lengths", default="equal,mixed", metavar="NAME,…", help="default equal,mixed")
    add("--engines", default="training,vllm,transformers", metavar="NAME,…", help="default training,vllm,transformers")
    add("--tensors", default="1", metavar="N,…", help="tensor-parallel sizes of the training engine (default 1)")
    add("--dtype", choices=("fp32", "bf16"), default="fp32", help="default fp32")
    add("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    add("--threads", type=int, default=1, help="of each process (default 1)")
    add("--repeats", type=int, default=1, help="of each measurement; medians are printed (default 1)")
    add("--out", type=user_path, help="also write everything to this JSON file")
    return parser.parse_args()


def whole_numbers(name: str, text: str) -> list[int]:
    """`N,N` as numbers. Raises ConfigError for anything else."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ConfigError(f"--{name} is {text!r}, must be whole numbers with commas between them, for example 1,32") from None


if __name__ == "__main__":
    run_command(main)
