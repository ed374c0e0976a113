"""The files of a Hugging Face folder that are not weights: config, tokenizer, chat template, generation config, licence."""

import shutil
from pathlib import Path

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".index.json")
LARGEST = 64 * 2**20  # bytes; the tokenizers of today stay below 40 MiB


def copy_hf_files(source: Path, target: Path) -> None:
    """Copy everything of `source` into the new folder `target`, except weights, hidden files and files above 64 MiB. Links are followed."""

    def left_out(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if name.startswith(".") or name.endswith(WEIGHT_SUFFIXES) or _is_large(Path(folder) / name)]

    shutil.copytree(source, target, ignore=left_out, ignore_dangling_symlinks=True)


def _is_large(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > LARGEST
