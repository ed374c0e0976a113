"""The files of a Hugging Face folder that are not weights: config, tokenizer, chat template, generation config, licence."""

import shutil
from pathlib import Path

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".index.json")
LARGEST = 64 * 2**20  # bytes; the tokenizers of today stay below 40 MiB


def copy_hf_files(source: Path, target: Path) -> None:
    """Copy everything of `source` into the new folder `target`, except weights, hidden files and files above 64 MiB.

    Links to files are followed, as a download cache has them. Links to folders are left out: they may lead round in a circle.
    """

    def left_out(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if name.startswith(".") or name.endswith(WEIGHT_SUFFIXES) or _is_left_out(Path(folder) / name)]

    shutil.copytree(source, target, ignore=left_out, ignore_dangling_symlinks=True)


def _is_left_out(path: Path) -> bool:
    return path.stat().st_size > LARGEST if path.is_file() else path.is_symlink() and path.is_dir()
