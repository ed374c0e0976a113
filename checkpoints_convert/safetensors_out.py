"""Writing safetensors files tensor by tensor, in shards with an index; the safetensors library wants all tensors of a file at once.

A file is 8 bytes (length of the header, little-endian), the header (JSON: type, shape and place of each tensor), then the values.
"""

import json
import os
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from megatron_atesd.checkpoint.hf_tensors import FLOATS, INDEX
from megatron_atesd.checkpoint.written_files import SlicedFile

_NAMES = {dtype: name for name, dtype in FLOATS.items()}


class SafetensorsFolder:
    """The weight files of a folder, written in any order; names, shapes and types are known beforehand.

    tensors: by name, on the meta device. Files are at most shard_bytes long, unless one tensor alone is longer.
    file: name of the only file, without its ending; of several, the index is a model's.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, Tensor], shard_bytes: int, file: str = "model") -> None:
        self._places: dict[str, tuple[SlicedFile, int, int]] = {}  # file, position of the next byte, end
        self._files: list[SlicedFile] = []
        pattern = f"{file}{{suffix}}.safetensors"
        plan = split_torch_state_dict_into_shards(dict(tensors), filename_pattern=pattern, max_shard_size=shard_bytes)
        for shard, names in plan.filename_to_tensors.items():
            self._start(folder / shard, {name: tensors[name] for name in names})
        if plan.is_sharded:
            index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _start(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        ends = dict(zip(tensors, accumulate(tensor.nbytes for tensor in tensors.values()), strict=True))
        for name, tensor in tensors.items():
            place = [ends[name] - tensor.nbytes, ends[name]]
            header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # the values begin at a multiple of 8
        file = SlicedFile(path)
        self._files.append(file)
        file.write(len(text).to_bytes(8, "little") + text)
        base = file.tell()
        if hasattr(os, "posix_fallocate"):  # a disk that is too small shows before the work
            os.posix_fallocate(file.fileno(), 0, base + sum(tensor.nbytes for tensor in tensors.values()))
        self._places |= {name: (file, base + end - tensors[name].nbytes, base + end) for name, end in ends.items()}

    def append(self, name: str, rows: Tensor) -> None:
        """The next rows of a tensor."""
        file, position, end = self._places[name]
        assert position + rows.nbytes <= end, name
        file.seek(position)
        file.write(rows.contiguous().view(torch.uint8).numpy().data)
        self._places[name] = file, position + rows.nbytes, end

    def close(self) -> None:
        """Every tensor must be complete by then."""
        for file in self._files:
            file.close()
        assert all(position == end for _, position, end in self._places.values())
