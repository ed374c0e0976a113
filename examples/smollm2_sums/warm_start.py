"""Show SmolLM2 the form of a solution, as student and as teacher, with a few supervised updates.

torchrun --nproc-per-node 2 examples/smollm2_sums/warm_start.py --model DIR --data DIR --out DIR --seed 1

Without it the model answers in prose of its own, and does not know what to do with the part of a solution that the teacher is shown.
Half of the examples are student prompts, half teacher prompts of any exposure; all have the right solution as their response.
Writes the Megatron model folder OUT.
"""

import argparse
import random
import sys
from pathlib import Path

from examples.smollm2_sums.problems import STEPS, fresh_problem
from megatron_atesd.checkpoint.model_folder import load_model_weights
from megatron_atesd.checkpoint.reading import model_state, write_folder
from megatron_atesd.config import ScheduleConfig, TrainConfig, load_config
from megatron_atesd.config.bounds import seed_argument
from megatron_atesd.data.problems import load_problems
from megatron_atesd.data.prompts import PromptRenderer
from megatron_atesd.data.tokenizer import load_tokenizer
from megatron_atesd.errors import run_command
from megatron_atesd.model.gpt import build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.parallel.groups import data_parallel_place, is_main
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.paths import user_path
from megatron_atesd.train.optimizer import build_optimization
from megatron_atesd.train.sft import SftExample, sft_step

MICRO_BATCH_TOKENS = 2048
OPTIMIZER = {"lr": 5e-5, "adam_beta1": 0.9, "adam_beta2": 0.98, "weight_decay": 0.0, "clip_grad": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=user_path, required=True, help="settings of the trainings that follow: prompts, reveal, dtype")
    parser.add_argument("--model", type=user_path, required=True, help="Hugging Face folder to start from")
    parser.add_argument("--data", type=user_path, required=True, help="folder with train, probe and test.jsonl, which are kept out")
    parser.add_argument("--out", type=user_path, required=True, help="Megatron model folder to write")
    parser.add_argument("--seed", type=seed_argument, default=1)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16, help="examples an update, over all processes")
    a = parser.parse_args()
    settings = load_config(["--config", str(a.config), "--model.path", str(a.model)])
    held_out = {p.problem for name in ("train", "probe", "test") for p in load_problems(a.data / f"{name}.jsonl")}
    with parallel_session(seed=a.seed):
        warm_start(settings, a.model, held_out, a.out, a.seed, a.updates, a.batch)


def warm_start(settings: TrainConfig, hf: Path, held_out: set[str], out: Path, seed: int, updates: int, examples: int) -> None:
    """Train data-parallel over all processes from the Hugging Face folder `hf`, and write the model folder `out`."""
    architecture = read_architecture(hf)
    model = build_model(architecture, transformer_config(architecture, 1, 1, False, settings.model.dtype))
    load_model_weights(model, hf)
    optimization = build_optimization(model, OPTIMIZER, {}, ScheduleConfig(warmup_updates=updates // 10), updates)
    renderer = PromptRenderer(load_tokenizer(hf, architecture.vocabulary), settings.prompt, settings.exposure.reveal)
    rank, size = data_parallel_place()
    source, seen = random.Random(f"{seed}/{rank}"), set(held_out)
    for update in range(1, updates + 1):
        loss = sft_step(optimization, model, batch(source, seen, renderer, examples // size), MICRO_BATCH_TOKENS)
        if is_main():
            print(f"warm start {update}/{updates}  loss {loss:.4f}", file=sys.stderr, flush=True)
    write_folder(out, model_state(model), hf)


def batch(source: random.Random, seen: set[str], renderer: PromptRenderer, examples: int) -> list[SftExample]:
    """Student and teacher prompts by turns, of problems that are not in `seen`, to which they are added."""
    made = []
    for place in range(examples):
        problem = fresh_problem(source, seen, "warm start", source.choice(STEPS))
        prompt = renderer.teacher(problem, source.random()).prompt_ids if place % 2 else renderer.student(problem)
        response = renderer.reference(problem)
        made.append(SftExample(prompt, response, (1,) * len(response)))
    return made


if __name__ == "__main__":
    run_command(main)
