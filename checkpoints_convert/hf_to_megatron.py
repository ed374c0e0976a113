"""Hugging Face model folder → Megatron model folder, which loads at any tensor- and pipeline-parallel size.

python checkpoints_convert/hf_to_megatron.py --hf DIR --out DIR [--adapter PEFT_DIR] [--dtype fp32|bf16|keep] [--verify]

The result is weights/ (megatron.core torch_dist) beside hf/ (config, tokenizer, chat template and the other small files) and
SHA256SUMS. Weights pass through memory a few tensors at a time; only --verify builds models, one after the other, in fp32.

--adapter merges a LoRA adapter that peft saved into the weights, in fp32 before they are rounded to the written type: a start at which
a teacher, too, knows what the adapter has learned.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoints_convert.command import choose_dtype, command_parser, dtype_name, single_process
from checkpoints_convert.output import check_output, finished_folder
from megatron_atesd.errors import ConversionError, run_command
from megatron_atesd.logs import tell
from megatron_atesd.paths import user_path

if TYPE_CHECKING:
    from checkpoints_convert.sources import Source
    from megatron_atesd.model.architecture import Architecture


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser(
        "Convert a Hugging Face model folder (Qwen3 or Llama) to a Megatron model folder that loads at any TP and PP.",
        "hf",
        "folder with config.json and safetensors",
        "new Megatron model folder: weights/ and hf/",
    )
    parser.add_argument("--adapter", type=user_path, metavar="DIR", help="LoRA adapter of that model, as peft saves it, to be merged in")
    arguments = parser.parse_args(argv)
    for source in filter(None, (arguments.source, arguments.adapter)):
        check_output(arguments.out, source, arguments.force)
    with single_process():
        convert(arguments.source, arguments.out, arguments.dtype, arguments.tolerance if arguments.verify else None, arguments.adapter)


def convert(source: Path, out: Path, asked_dtype: str = "keep", tolerance: float | None = None, adapter: Path | None = None) -> None:
    """Write the Megatron model folder `out`, whole or not at all.

    tolerance: also read the result back and compare logits with transformers, inside `parallel_session` of one process; None does not.
    adapter: a PEFT folder that is merged in.
    Raises ConversionError when `source` is no such model, is damaged, or the logits differ, or when `adapter` is none of it.
    """
    from checkpoints_convert.sources import HfSource
    from checkpoints_convert.stream import write_megatron
    from megatron_atesd.checkpoint.hf_files import copy_hf_files
    from megatron_atesd.checkpoint.hf_tensors import HfWeights
    from megatron_atesd.checkpoint.manifest import checksums, listed_files, write_manifest
    from megatron_atesd.data.tokenizer import check_tokenizer
    from megatron_atesd.model.hf_config import read_architecture
    from megatron_atesd.model.trained import MODEL_PREFIX

    _refuse_adapter_alone(source)
    architecture = read_architecture(source)
    check_tokenizer(source, architecture.vocabulary)
    weights = HfSource(HfWeights(source, architecture), architecture)
    merged = weights if adapter is None else _merged(weights, adapter, architecture)
    dtype = choose_dtype(asked_dtype, weights.dtypes(), source)
    what = f"{source}" if adapter is None else f"{source} and the adapter {adapter}"
    tell(f"reading {what}: {architecture.family}, {architecture.layers} layers, writing {dtype_name(dtype)}")
    with finished_folder(out) as staging:
        copy_hf_files(source, staging / "hf")
        digests = write_megatron(merged, architecture, staging / "weights", MODEL_PREFIX, dtype)
        known = {f"weights/{name}": digest for name, digest in digests.items()}
        write_manifest(staging, known | checksums(staging, set(listed_files(staging)) - known.keys()))
        if tolerance is not None:
            from checkpoints_convert.verify import both, verify

            verify(*both(staging, MODEL_PREFIX, source, dtype, adapter), source, tolerance)
    tell(f"finished: {out}")


def _refuse_adapter_alone(source: Path) -> None:
    from megatron_atesd.checkpoint.peft_folder import is_peft_folder

    if is_peft_folder(source):
        raise ConversionError(f"{source}: a LoRA adapter, not a model; give the folder of its base with --hf, and this one with --adapter")


def _merged(base: "Source", adapter: Path, architecture: "Architecture") -> "Source":
    from checkpoints_convert.sources import MergedSource
    from megatron_atesd.checkpoint.peft_folder import PeftFolder

    folder = PeftFolder(adapter, architecture)
    settings, base_name = folder.settings, folder.base or "a base that it does not name"
    tell(f"{adapter}: LoRA of rank {settings.rank} on {', '.join(settings.targets)}, trained on {base_name}")
    return MergedSource(base, folder)


if __name__ == "__main__":
    run_command(main)
