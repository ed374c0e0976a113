"""Where a conversion writes: a folder beside the target that takes its name only when everything is finished, checks included."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from megatron_atesd.checkpoint.folders import delete, replace_folder, sync_tree
from megatron_atesd.errors import ConversionError


def check_output(out: Path, source: Path, force: bool) -> None:
    """Refuse, before any work, an output that would overwrite something: raises ConversionError."""
    target, origin = (Path(os.path.realpath(path)) for path in (out, source))  # resolve() raises for a link round in a circle
    if target == origin or target in origin.parents or origin in target.parents:
        raise ConversionError(f"--out {out} and the model in {source} lie in one another; choose another folder")
    if out.exists() and not out.is_dir():
        raise ConversionError(f"--out {out} is a file; choose a folder")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise ConversionError(f"--out {out} is not empty; choose another folder, or replace it with --force")


@contextmanager
def finished_folder(out: Path) -> Iterator[Path]:
    """A name, in `out`.unfinished, to write a folder under; it takes the place of `out` if the block ends well, else it is removed."""
    unfinished = out.with_name(out.name + ".unfinished")
    staging = unfinished / out.name
    new = [parent for parent in out.parents if not os.path.exists(parent)]  # Path.exists raises in a folder closed to us
    try:
        delete(unfinished)
        unfinished.mkdir(parents=True)
        yield staging
        sync_tree(staging)
        replace_folder(staging, out)
    except (OSError, SafetensorError) as error:
        raise ConversionError(f"{out} cannot be written: {error}") from error
    finally:
        delete(unfinished)
        for parent in new:  # these stay only with something in them
            with suppress(OSError):
                parent.rmdir()
