"""Hugging Face model folder → Megatron model folder, which loads at any tensor- and pipeline-parallel size.

python checkpoints_convert/hf_to_megatron.py --hf DIR --out DIR [--dtype fp32|bf16|keep] [--verify]

The result is weights/ (megatron.core torch_dist) beside hf/ (config, tokenizer, chat template and the other small files) and
SHA256SUMS. Weights pass through memory a few tensors at a time; only --verify builds models, one after the other, in fp32.
"""

from collections.abc import Sequence
from pathlib import Path

from checkpoints_convert.command import choose_dtype, command_parser, dtype_name, single_process
from checkpoints_convert.output import check_output, finished_folder, say
from megatron_atesd.errors import run_command


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser(
        "Convert a Hugging Face model folder (Qwen3 or Llama) to a Megatron model folder that loads at any TP and PP.",
        "hf",
        "folder with config.json and safetensors",
        "new Megatron model folder: weights/ and hf/",
    )
    arguments = parser.parse_args(argv)
    check_output(arguments.out, arguments.source, arguments.force)
    with single_process():
        convert(arguments.source, arguments.out, arguments.dtype, arguments.tolerance if arguments.verify else None)


def convert(source: Path, out: Path, asked_dtype: str = "keep", tolerance: float | None = None) -> None:
    """Write the Megatron model folder `out`, whole or not at all.

    tolerance: also read the result back and compare logits with transformers, inside `parallel_session` of one process; None does not.
    Raises ConversionError when `source` is no such model, is damaged, or the logits differ.
    """
    from checkpoints_convert.stream import write_megatron
    from checkpoints_convert.verify import verify
    from megatron_atesd.checkpoint.hf_files import copy_hf_files
    from megatron_atesd.checkpoint.hf_tensors import HfWeights
    from megatron_atesd.checkpoint.manifest import checksums, listed_files, write_manifest
    from megatron_atesd.data.tokenizer import check_tokenizer
    from megatron_atesd.model.hf_config import read_architecture
    from megatron_atesd.model.trained import MODEL_PREFIX

    architecture = read_architecture(source)
    check_tokenizer(source, architecture.vocabulary)
    weights = HfWeights(source, architecture)
    dtype = choose_dtype(asked_dtype, weights.dtypes(), source)
    say(f"reading {source}: {architecture.family}, {architecture.layers} layers, writing {dtype_name(dtype)}")
    with finished_folder(out) as staging:
        copy_hf_files(source, staging / "hf")
        digests = write_megatron(weights, architecture, staging / "weights", MODEL_PREFIX, dtype)
        known = {f"weights/{name}": digest for name, digest in digests.items()}
        write_manifest(staging, known | checksums(staging, set(listed_files(staging)) - known.keys()))
        if tolerance is not None:
            verify(staging, MODEL_PREFIX, source, dtype, tolerance)
    say(f"finished: {out}")


if __name__ == "__main__":
    run_command(main)
