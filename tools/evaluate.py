"""Average@k, pass@k and greedy accuracy of a model on a problem file.

torchrun --nproc-per-node N tools/evaluate.py --model DIR --data FILE --samples 12 --out DIR

The model is a Megatron model folder, a checkpoint of a run, a run directory (its newest checkpoint) or a Hugging Face folder.
Prompts and the parallel layout come from --config (the training run's YAML) and --section.key overrides; sampling is the
evaluation's own.
"""

import argparse
from pathlib import Path

from rich.console import Console

from megatron_atesd.config import load_config
from megatron_atesd.errors import run_command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--data", type=Path, required=True, help="problem file (JSONL)")
    parser.add_argument("--out", type=Path, required=True, help="folder for evaluation.json and responses.jsonl")
    parser.add_argument("--samples", type=int, default=12, help="responses a problem (default 12)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the samples")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--top-k", type=int, default=0, help="0 keeps all tokens")
    parser.add_argument("--max-new-tokens", type=int, default=38912, help="a response is cut after so many (default 38912)")
    parser.add_argument("--thinking", action=argparse.BooleanOptionalAction, default=True, help="chat template's thinking switch")
    parser.add_argument("--grading-workers", type=int, default=2, help="processes that grade answers")
    parser.add_argument("--grading-seconds", type=float, default=5.0, help="time limit of one answer")
    arguments, rest = parser.parse_known_args()
    settings = load_config(rest)

    from megatron_atesd.evaluate.average import table  # megatron.core is slow to import: first be sure of the arguments
    from megatron_atesd.evaluate.evaluation import evaluate, with_sampling
    from megatron_atesd.evaluate.prepare import Evaluation

    a = arguments
    settings = with_sampling(settings, a.temperature, a.top_p, a.top_k, a.max_new_tokens, a.thinking)
    task = Evaluation(a.model, a.data, a.out, a.samples, a.seed, a.grading_workers, a.grading_seconds, settings)
    summary = evaluate(task)
    if summary is not None:
        Console().print(table({a.model.name: summary}))
        print(f"written to {a.out / 'evaluation.json'} and responses.jsonl")


if __name__ == "__main__":
    run_command(main)
