"""Writing the folder of an adapter as peft does: its config and factors, and the tokenizer that it was trained with.

There is no config.json in it: that is what tells a model from an adapter, here and elsewhere.
"""

import json
import shutil
import sys
from math import prod
from pathlib import Path

import torch

from checkpoints_convert.progress import progress
from checkpoints_convert.safetensors_out import SafetensorsFolder
from megatron_atesd.checkpoint.adapter_tensors import Adapters
from megatron_atesd.checkpoint.peft_config import CONFIG, peft_config
from megatron_atesd.checkpoint.peft_folder import PEFT_PREFIX, WEIGHTS
from megatron_atesd.data.tokenizer import TOKENIZER_FILES

_TOKENIZER = (*TOKENIZER_FILES, "merges.txt", "added_tokens.json", "special_tokens_map.json", "chat_template.jinja")
_TEMPLATES = "additional_chat_templates"  # a folder, where a tokenizer has several


def write_peft(adapters: Adapters, folder: Path, base: str, hf_files: Path, dtype: torch.dtype) -> None:
    """Write the new `folder`, its factors in `dtype`, one at a time. Raises what `adapters` raise.

    base: where peft is to find the model. hf_files: a folder that has the tokenizer, if there is one.
    """
    folder.mkdir(parents=True)
    _copy_tokenizer(hf_files, folder)
    values = peft_config(adapters.settings, base)
    (folder / CONFIG).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    shapes = adapters.shapes
    tensors = {PEFT_PREFIX + name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}
    out = SafetensorsFolder(folder, tensors, sys.maxsize, WEIGHTS.removesuffix(".safetensors"))
    with progress("writing adapters", sum(map(prod, shapes.values())) * dtype.itemsize) as advance:
        for name in shapes:
            factor = adapters.read(name).to(dtype)
            out.append(PEFT_PREFIX + name, factor)
            advance(factor.nbytes)
    out.close()


def _copy_tokenizer(source: Path, target: Path) -> None:
    for name in _TOKENIZER:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if (source / _TEMPLATES).is_dir():
        shutil.copytree(source / _TEMPLATES, target / _TEMPLATES, copy_function=shutil.copyfile)
