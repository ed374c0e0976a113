"""Megatron model folder, training checkpoint or run directory → Hugging Face model folder, for transformers, vLLM and others.

python checkpoints_convert/megatron_to_hf.py --megatron DIR --out DIR [--dtype fp32|bf16|keep] [--verify]

The result is config.json, the tokenizer and the other small files that came with the model, and safetensors in shards of at most 5 GB.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from checkpoints_convert.command import choose_dtype, command_parser, single_process, whole_model
from checkpoints_convert.output import check_output, finished_folder, say
from megatron_atesd.errors import run_command

SHARD_BYTES = 5 * 10**9
_HF_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser(
        "Convert a Megatron model folder, a training checkpoint or a run directory's newest checkpoint to a Hugging Face model folder.",
        "megatron",
        "model folder (weights/ and hf/), checkpoint step_N, or run directory",
        "new Hugging Face model folder",
    )
    arguments = parser.parse_args(argv)
    from megatron_atesd.train.model_folder import find_model_folder  # slow to import: --help does not wait for it

    source = find_model_folder(arguments.source)
    check_output(arguments.out, source, arguments.force)
    with single_process():
        convert(source, arguments.out, arguments.dtype, arguments.tolerance if arguments.verify else None)


def convert(source: Path, out: Path, asked_dtype: str = "keep", tolerance: float | None = None, shard_bytes: int = SHARD_BYTES) -> None:
    """Write the Hugging Face folder `out` of the model folder `source`, whole or not at all; inside `parallel_session` of one process.

    tolerance: also compare logits with transformers on the result; None does not.
    Raises CheckpointError when `source` cannot be loaded, ConversionError when the logits differ.
    """
    from huggingface_hub import save_torch_state_dict

    from checkpoints_convert.verify import verify
    from checkpoints_convert.weights import hf_tensors
    from megatron_atesd.data.tokenizer import check_tokenizer
    from megatron_atesd.model.qwen3 import read_architecture
    from megatron_atesd.train.checkpoint import stored_dtypes
    from megatron_atesd.train.hf_files import copy_hf_files
    from megatron_atesd.train.model_folder import find_hf, load_model_weights

    hf_files = find_hf(source)
    architecture = read_architecture(hf_files)
    check_tokenizer(hf_files, architecture.vocabulary)
    dtype = choose_dtype(asked_dtype, map(str, stored_dtypes(source)), source)
    say(f"reading {source}: {architecture.family}, {architecture.layers} layers, writing {dtype}")
    model = whole_model(architecture, dtype)
    load_model_weights(model, source)
    with finished_folder(out) as staging:
        copy_hf_files(hf_files, staging)
        _set_dtype(staging / "config.json", dtype)
        save_torch_state_dict(dict(hf_tensors(model)), staging, max_shard_size=shard_bytes, metadata={"format": "pt"})
        if tolerance is not None:
            verify(model, staging, tolerance)
    say(f"finished: {out}")


def _set_dtype(config: Path, dtype: str) -> None:
    """State the type of the weights under the key that the config already uses (older configs: torch_dtype, which all versions read)."""
    values = json.loads(config.read_text(encoding="utf-8"))
    keys = [key for key in ("dtype", "torch_dtype") if key in values] or ["torch_dtype"]
    values |= dict.fromkeys(keys, _HF_DTYPES[dtype])
    config.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
