"""Whether a model folder still holds what it held, without reading its weights."""

import hashlib
from pathlib import Path

from megatron_atesd.checkpoint.manifest import MANIFEST, listed_files


def fingerprint(folder: Path) -> str:
    """16 hexadecimal digits that change when the model in `folder` does.

    Of a Megatron model folder they are made of its checksums: a copy has the same. Without checksums (a Hugging Face folder: of the files
    beside config.json) they are made of names, sizes and times of change: a copy that does not keep the times has others.
    """
    if (folder / MANIFEST).is_file():
        text = (folder / MANIFEST).read_bytes()
    else:
        names = listed_files(folder) if (folder / "weights").is_dir() else sorted(p.name for p in folder.iterdir() if p.is_file())
        stats = ((name, (folder / name).stat()) for name in names)
        text = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]).encode()
    return hashlib.sha256(text).hexdigest()[:16]
