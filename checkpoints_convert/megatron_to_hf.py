"""Megatron model folder, training checkpoint or run directory → Hugging Face model folder, for transformers, vLLM and others.

python checkpoints_convert/megatron_to_hf.py --megatron DIR --out DIR [--weights student|teacher] [--dtype fp32|bf16|keep] [--verify]

The result is config.json, the tokenizer and the other small files that came with the model, and safetensors in shards of at most 5 GB.
Weights pass through memory a few tensors at a time; only --verify builds models, one after the other, in fp32.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoints_convert.command import choose_dtype, command_parser, dtype_name, single_process
from checkpoints_convert.output import check_output, finished_folder, say
from megatron_atesd.errors import CheckpointError, run_command

if TYPE_CHECKING:
    from megatron_atesd.checkpoint.torch_dist import StoredTensors

SHARD_BYTES = 5 * 10**9


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser(
        "Convert a Megatron model folder, a training checkpoint or a run directory's newest checkpoint to a Hugging Face model folder.",
        "megatron",
        "model folder (weights/ and hf/), checkpoint step_N, or run directory",
        "new Hugging Face model folder",
    )
    parser.add_argument(
        "--weights",
        choices=("student", "teacher"),
        default="student",
        help="which weights of a training checkpoint; teacher: initial, refreshed or EMA weights, in fp32 unless --dtype says otherwise",
    )
    arguments = parser.parse_args(argv)
    from megatron_atesd.checkpoint.model_folder import find_model_folder  # slow to import: --help does not wait for it

    source = find_model_folder(arguments.source)
    check_output(arguments.out, source, arguments.force)
    with single_process():
        convert(source, arguments.out, arguments.dtype, arguments.tolerance if arguments.verify else None, arguments.weights)


def convert(
    source: Path,
    out: Path,
    asked_dtype: str = "keep",
    tolerance: float | None = None,
    weights: str = "student",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the Hugging Face folder `out` of the model folder `source`, whole or not at all.

    tolerance: also compare logits with transformers on the result, inside `parallel_session` of one process; None does not.
    Raises CheckpointError when `source` cannot be read or lacks the `weights`, ConversionError when the logits differ.
    """
    from checkpoints_convert.stream import check_stored, write_hf
    from checkpoints_convert.verify import verify
    from megatron_atesd.checkpoint.hf_files import copy_hf_files
    from megatron_atesd.checkpoint.model_folder import find_hf
    from megatron_atesd.data.tokenizer import check_tokenizer
    from megatron_atesd.model.hf_config import read_architecture

    hf_files = find_hf(source)
    architecture = read_architecture(hf_files)
    check_tokenizer(hf_files, architecture.vocabulary)
    stored = _stored(source, weights)
    check_stored(stored, architecture)
    dtype = choose_dtype(asked_dtype, stored.dtypes(), source)
    say(f"reading {source}: {weights}, {architecture.family}, {architecture.layers} layers, writing {dtype_name(dtype)}")
    with finished_folder(out) as staging:
        copy_hf_files(hf_files, staging)
        _set_dtype(staging / "config.json", str(dtype).removeprefix("torch."))
        write_hf(stored, architecture, staging, dtype, shard_bytes)
        if tolerance is not None:
            verify(source, stored.prefix, staging, dtype, tolerance)
    say(f"finished: {out}")


def _stored(source: Path, weights: str) -> "StoredTensors":
    from megatron_atesd.checkpoint.torch_dist import StoredTensors
    from megatron_atesd.distill.teacher import PREFIX as TEACHER_PREFIX
    from megatron_atesd.model.trained import MODEL_PREFIX

    stored = StoredTensors(source / "weights", TEACHER_PREFIX if weights == "teacher" else MODEL_PREFIX)
    if weights == "teacher" and not stored.shapes():
        raise CheckpointError(
            f"{source}: holds no teacher: it is a converted model, or distill.teacher was live, whose weights are the student's; "
            "export --weights student"
        )
    return stored


def _set_dtype(config: Path, dtype: str) -> None:
    """State the type of the weights under the key that the config already uses (older configs: torch_dtype, which all versions read)."""
    values = json.loads(config.read_text(encoding="utf-8"))
    keys = [key for key in ("dtype", "torch_dtype") if key in values] or ["torch_dtype"]
    values |= dict.fromkeys(keys, dtype)
    config.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
