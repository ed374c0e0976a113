"""Average@k, pass@k, majority and greedy accuracy of a model on a problem file, and what its responses look like.

torchrun --nproc-per-node N tools/evaluate.py --protocol opsd_v3 --model DIR --data FILE --out DIR

The model is a Megatron model folder, a checkpoint of a run, a run directory (its newest checkpoint) or a Hugging Face folder. A checkpoint
of adapters (section lora) needs the base that they were trained on: in the folder where it was, or else in that of --config's model.path.
Prompts, the parallel layout and how the engine works (engine.batch, engine.cache_gib) come from --config (the training run's YAML) and
--section.key overrides. Sampling, engine, thinking, seed, model and files are the evaluation's own options: what the YAML says of them
does not count, and an override of them is refused.

Every finished response is on disk at once. The same command, killed, goes on where it was, on any number of processes; where all
responses are there, it grades them anew and writes the same table, without the model. Another model, problems, seed, number of samples or
sampling than those of the responses in --out is refused.

--protocol NAME takes the values of a named protocol; a flag that is given besides overrides its value. evaluation.json and the last line
that is printed spell out each value that differs from the protocol's. docs/evaluation.md says what each figure means.

While it runs, stderr says how many responses are there, of all ranks, and how many of those graded so far are right. Short responses
come first, so both this share and the time left change as the long ones come.
"""

import argparse

from rich.console import Console

from megatron_atesd.config import RolloutConfig, load_config
from megatron_atesd.errors import run_command
from megatron_atesd.evaluate.flags import FLAGS
from megatron_atesd.evaluate.protocol import PROTOCOLS, protocol_text
from megatron_atesd.logs import add_log_level
from megatron_atesd.paths import user_path

WIDTH = 140  # of the tables where the output is no terminal


def main() -> None:
    a, rest = parse()
    settings = load_config(rest, FLAGS)

    from megatron_atesd.evaluate.evaluation import evaluate, with_flags  # megatron.core is slow to import: first be sure of the arguments
    from megatron_atesd.evaluate.prepare import Evaluation
    from megatron_atesd.evaluate.tables import pass_line, response_table, table

    rollout = RolloutConfig(a.max_new_tokens, a.min_new_tokens, a.temperature, a.top_k, a.top_p, a.min_p, a.stop)
    settings = with_flags(settings, rollout, a.engine, a.thinking)
    task = Evaluation(a.model, a.data, a.out, a.samples, a.seed, a.grading_workers, a.grading_seconds, settings, a.protocol)
    summary = evaluate(task)
    if summary is not None:
        shown = {a.model.name: summary}
        console = Console() if Console().is_terminal else Console(width=WIDTH)
        console.print(table(shown), response_table(shown), sep="\n")
        print(pass_line(summary), protocol_text(summary["protocol"]), sep="\n")
        print(f"written to {a.out / 'evaluation.json'} and responses.jsonl")


def parse() -> tuple[argparse.Namespace, list[str]]:
    """The command's own options, and the settings for load_config."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_log_level(parser)
    add = parser.add_argument
    add("--protocol", choices=tuple(PROTOCOLS), help="named values of the sampling flags below; seed and engine stay free (default none)")
    add("--model", type=user_path, required=True, help="model folder")
    add("--data", type=user_path, required=True, help="problem file (JSONL)")
    add("--out", type=user_path, required=True, help="folder for evaluation.json and responses.jsonl; one evaluation a folder")
    add("--samples", type=int, default=12, help="responses a problem (default 12), besides a greedy one")
    add("--seed", type=int, default=1, help="seed of the samples")
    add("--engine", choices=("training", "vllm"), default="training", help="what samples, see engine.name in tools/train.py --help")
    add("--temperature", type=float, default=1.0)
    add("--top-p", type=float, default=0.95)
    add("--top-k", type=int, default=0, help="0 keeps all tokens")
    add("--min-p", type=float, default=0.0, help="drop tokens less probable than this share of the most likely one (default 0: none)")
    add("--max-new-tokens", type=int, default=38912, help="a response is cut after so many (default 38912)")
    add("--min-new-tokens", type=int, default=0, help="no stop token before so many (default 0)")
    add("--stop", action="append", default=[], metavar="TEXT", help="a text that ends a response; may be repeated (default none)")
    add("--thinking", action=argparse.BooleanOptionalAction, default=True, help="chat template's thinking switch")
    add("--grading-workers", type=int, default=2, help="processes that grade answers")
    add("--grading-seconds", type=float, default=5.0, help="time limit of one answer")
    named, _ = parser.parse_known_args()
    if named.protocol is not None:
        parser.set_defaults(**PROTOCOLS[named.protocol])
    return parser.parse_known_args()


if __name__ == "__main__":
    run_command(main)
