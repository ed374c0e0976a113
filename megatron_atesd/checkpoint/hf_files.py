"""The files of a Hugging Face folder that are not weights: config, tokenizer, chat template, generation config, licence."""

import json
import shutil
from pathlib import Path

import torch

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".index.json")
LARGEST = 64 * 2**20  # bytes; the tokenizers of today stay below 40 MiB


def copy_hf_files(source: Path, target: Path) -> None:
    """Copy everything of `source` into the new folder `target`, except weights, hidden files and files above 64 MiB.

    Contents are copied, permissions are not: what is written belongs to the writer, also where `source` is read-only.
    Links to files are followed, as a download cache has them. Links to folders are left out: they may lead round in a circle.
    """
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.name.startswith(".") or path.name.endswith(WEIGHT_SUFFIXES):
            continue
        if path.is_dir() and not path.is_symlink():
            copy_hf_files(path, target / path.name)
        elif path.is_file() and path.stat().st_size <= LARGEST:
            shutil.copyfile(path, target / path.name)


def state_dtype(config: Path, dtype: torch.dtype) -> None:
    """State the type of the weights under the key that the config already uses (older configs: torch_dtype, which all versions read)."""
    values = json.loads(config.read_text(encoding="utf-8"))
    keys = [key for key in ("dtype", "torch_dtype") if key in values] or ["torch_dtype"]
    values |= dict.fromkeys(keys, str(dtype).removeprefix("torch."))
    config.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
