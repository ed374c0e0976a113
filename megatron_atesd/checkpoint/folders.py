"""Folders that take their name whole: written or replaced under another one first, so that a kill at any moment leaves no half of them."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

WRITING, REMOVED, REPLACED = ".partial", ".removed", ".replaced"  # endings of folders that are nothing (yet, or any more)


def replace_folder(new: Path, final: Path) -> None:
    """Give `new` the name `final`. A kill at any moment leaves `final`, or the older one as `final`.replaced (see `recover`)."""
    old = final.with_name(final.name + REPLACED)
    if final.is_dir():
        remove_folder(old)
        os.replace(final, old)
    os.replace(new, final)
    sync(final.parent)
    remove_folder(old)


def remove_folder(folder: Path) -> None:
    """Delete a folder, if it is there; under another name first, so that a kill leaves no half of it under its own."""
    if folder.is_dir():
        doomed = folder.with_name(folder.name + REMOVED)
        delete(doomed)
        os.replace(folder, doomed)
        delete(doomed)


def delete(folder: Path) -> None:
    """Delete a folder with what is in it, as far as this user may; also where folders in it are read-only. Of a link, only the link."""
    if folder.is_symlink():
        folder.unlink(missing_ok=True)
        return
    for place, _, _ in os.walk(folder):
        with suppress(OSError):
            os.chmod(place, 0o700)
    shutil.rmtree(folder, ignore_errors=True)


def recover(parent: Path) -> None:
    """Give back the name of a folder that a killed job was about to replace."""
    for old in parent.glob(f"*{REPLACED}"):
        final = old.with_name(old.name.removesuffix(REPLACED))
        if not final.exists():
            os.replace(old, final)


def clean(parent: Path) -> None:
    """Delete what killed jobs left in `parent`, after `recover`."""
    for ending in (WRITING, REMOVED, REPLACED):
        for left_over in parent.glob(f"*{ending}"):
            delete(left_over)


def sync(path: Path) -> None:
    """Have a file or folder on disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Have everything in `folder` on disk before going on."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)
