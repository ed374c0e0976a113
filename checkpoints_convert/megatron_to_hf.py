"""Megatron model folder, training checkpoint or run directory → Hugging Face model folder, for transformers, vLLM and others.

python checkpoints_convert/megatron_to_hf.py --megatron DIR --out DIR [--weights student|teacher] [--dtype fp32|bf16|keep] [--verify]
python checkpoints_convert/megatron_to_hf.py --megatron DIR --out DIR [--merge] [--base DIR] …        of a checkpoint of LoRA adapters

The result is config.json, the tokenizer and the other small files that came with the model, and safetensors in shards of at most 5 GB.
Weights pass through memory a few tensors at a time; only --verify builds models, one after the other, in fp32.

Of a checkpoint of adapters it is a folder as peft saves one: adapter_config.json, adapter_model.safetensors and the tokenizer. With --merge
it is a model again: its base, with the adapters added in fp32 before the weights are rounded to the written type.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoints_convert.command import choose_dtype, command_parser, dtype_name, single_process
from checkpoints_convert.output import check_output, finished_folder
from megatron_atesd.errors import CheckpointError, ConversionError, run_command
from megatron_atesd.logs import tell
from megatron_atesd.paths import user_path

if TYPE_CHECKING:
    from megatron_atesd.checkpoint.torch_dist import StoredTensors

SHARD_BYTES = 5 * 10**9


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser(
        "Convert a Megatron model folder, a training checkpoint or a run directory's newest checkpoint to a Hugging Face model folder; "
        "LoRA adapters to a folder for peft, or merged into their base.",
        "megatron",
        "model folder (weights/ and hf/), checkpoint step_N, or run directory",
        "new Hugging Face model folder, or PEFT folder",
    )
    parser.add_argument(
        "--weights",
        choices=("student", "teacher"),
        default="student",
        help="which weights of a training checkpoint; teacher: initial, refreshed or EMA weights, in fp32 unless --dtype says otherwise",
    )
    parser.add_argument("--merge", action="store_true", help="of a checkpoint of LoRA adapters: write the whole model, with them merged in")
    parser.add_argument(
        "--base",
        type=user_path,
        metavar="DIR",
        help="of a checkpoint of LoRA adapters: where the model that they were trained on is now (default: where it was); it is checked",
    )
    arguments = parser.parse_args(argv)
    from megatron_atesd.checkpoint.base_model import adapter_record  # slow to import: --help does not wait for it
    from megatron_atesd.checkpoint.model_folder import find_model_folder

    source = find_model_folder(arguments.source)
    record = adapter_record(source)
    for read in filter(None, (source, arguments.base, record and Path(record.base.path))):
        check_output(arguments.out, read, arguments.force)
    tolerance = arguments.tolerance if arguments.verify else None
    with single_process():
        convert(source, arguments.out, arguments.dtype, tolerance, arguments.weights, merge=arguments.merge, base=arguments.base)


def convert(
    source: Path,
    out: Path,
    asked_dtype: str = "keep",
    tolerance: float | None = None,
    weights: str = "student",
    shard_bytes: int = SHARD_BYTES,
    merge: bool = False,
    base: Path | None = None,
) -> None:
    """Write the Hugging Face folder `out` of the model folder `source`, whole or not at all; of adapters a PEFT folder, unless `merge`.

    tolerance: also compare logits with transformers on the result, inside `parallel_session` of one process; None does not.
    base: where the adapters' base is now.
    Raises CheckpointError when `source` cannot be read or lacks the `weights`, or when the base is not there or another one,
    ConversionError when the logits differ, or for `merge` and `base` of a whole model.
    """
    from checkpoints_convert.adapter_export import AdapterExport
    from checkpoints_convert.sources import MegatronSource
    from checkpoints_convert.stream import write_hf
    from megatron_atesd.checkpoint.base_model import adapter_record
    from megatron_atesd.checkpoint.hf_files import copy_hf_files, state_dtype
    from megatron_atesd.checkpoint.model_folder import find_hf
    from megatron_atesd.data.tokenizer import check_tokenizer
    from megatron_atesd.model.hf_config import read_architecture

    hf_files = find_hf(source)
    architecture = read_architecture(hf_files)
    check_tokenizer(hf_files, architecture.vocabulary)
    if (record := adapter_record(source)) is not None:
        export = AdapterExport(source, record, weights, architecture, base)
        export.write_merged(out, asked_dtype, tolerance, shard_bytes) if merge else export.write_peft(out, asked_dtype, tolerance)
        return
    if merge or base is not None:
        raise ConversionError(f"{source}: holds a whole model, no LoRA adapters to merge into a base; leave --merge and --base out")
    stored = _stored(source, weights)
    weights_source = MegatronSource(stored, architecture)
    dtype = choose_dtype(asked_dtype, stored.dtypes(), source)
    tell(f"reading {source}: {weights}, {architecture.family}, {architecture.layers} layers, writing {dtype_name(dtype)}")
    with finished_folder(out) as staging:
        copy_hf_files(hf_files, staging)
        state_dtype(staging / "config.json", dtype)
        write_hf(weights_source, architecture, staging, dtype, shard_bytes)
        if tolerance is not None:
            from checkpoints_convert.verify import both, verify

            verify(*both(source, stored.prefix, staging, dtype), staging, tolerance)
    tell(f"finished: {out}")


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


if __name__ == "__main__":
    run_command(main)
