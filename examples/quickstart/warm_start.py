"""Make the quickstart's base model: a 365k-parameter Qwen3 from random weights, warm-started with a bad habit.

torchrun --nproc-per-node 2 examples/quickstart/warm_start.py --data DIR --out DIR --seed 1

Supervised updates with the project's Megatron code on student and teacher prompts (warm_start_data.py says what they teach).
Writes the Megatron model folder OUT; checkpoints_convert/megatron_to_hf.py makes a Hugging Face model of it.
"""

import argparse
import random
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config

from examples.quickstart.tokenizer import END, PAD, PROMPT, build_tokenizer
from examples.quickstart.warm_start_data import warm_start_batch
from megatron_atesd.checkpoint.reading import model_state, write_folder
from megatron_atesd.config import ScheduleConfig
from megatron_atesd.config.bounds import seed_argument
from megatron_atesd.data.problems import load_problems
from megatron_atesd.data.prompts import PromptRenderer
from megatron_atesd.errors import run_command
from megatron_atesd.model.gpt import build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.parallel.groups import data_parallel_place, is_main
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.train.optimizer import build_optimization
from megatron_atesd.train.sft import SftExample, sft_step

# A width of 96 wants larger random weights than megatron.core's 0.02, in the layers that write to the residual stream too.
INIT: dict[str, Any] = dict.fromkeys(("init_method", "output_layer_init_method"), partial(torch.nn.init.normal_, mean=0.0, std=0.06))
MICRO_BATCH_TOKENS = 8192
OPTIMIZER = {"lr": 3e-3, "adam_beta1": 0.9, "adam_beta2": 0.98, "weight_decay": 0.01, "clip_grad": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with probe.jsonl and test.jsonl, which are kept out")
    parser.add_argument("--out", type=Path, required=True, help="Megatron model folder to write")
    parser.add_argument("--seed", type=seed_argument, default=1)
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=32, help="examples an update, over all processes")
    a = parser.parse_args()
    with parallel_session(seed=a.seed), tempfile.TemporaryDirectory() as folder:
        warm_start(a.data, a.out, Path(folder), a.seed, a.updates, a.batch)


def warm_start(data: Path, out: Path, hf: Path, seed: int, updates: int, batch: int) -> None:
    """Train data-parallel over all processes and write the model folder `out`; `hf` is a folder for the model's description."""
    describe_model(hf)
    architecture = read_architecture(hf)
    model = build_model(architecture, transformer_config(architecture, 1, 1, False, "fp32", INIT))
    schedule = ScheduleConfig(warmup_updates=updates // 20, decay="wsd", decay_updates=updates * 3 // 10)
    optimization = build_optimization(model, OPTIMIZER, {}, schedule, updates)
    renderer = PromptRenderer(build_tokenizer(), PROMPT, "nearest")
    held_out = {p.problem for name in ("probe", "test") for p in load_problems(data / f"{name}.jsonl")}
    rank, size = data_parallel_place()
    source = random.Random(f"{seed}/{rank}")
    for update in range(1, updates + 1):
        examples = warm_start_batch(source, renderer, batch // size, held_out)
        loss = sft_step(optimization, model, [SftExample(e.prompt_ids, e.response_ids, e.loss_mask) for e in examples], MICRO_BATCH_TOKENS)
        if is_main() and (update % 100 == 0 or update == updates):
            print(f"warm start {update}/{updates}  loss {loss:.4f}", file=sys.stderr, flush=True)
    write_folder(out, model_state(model), hf)


def describe_model(folder: Path) -> None:
    """Write the tiny Qwen3's config.json, tokenizer and generation config."""
    tokenizer: Any = build_tokenizer()
    Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=288, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, tie_word_embeddings=True, max_position_embeddings=256, architectures=["Qwen3ForCausalLM"],
        eos_token_id=tokenizer.convert_tokens_to_ids(END), pad_token_id=tokenizer.convert_tokens_to_ids(PAD), bos_token_id=None,
    ).save_pretrained(folder)  # fmt: skip
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    run_command(main)
