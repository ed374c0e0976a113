"""A folder's checksums: complete, readable by sha256sum, and no flipped bit passes."""

import shutil
import subprocess
from pathlib import Path

import pytest

from megatron_atesd.checkpoint.manifest import MANIFEST, check_files, checksums, listed_files, read_manifest, write_manifest
from megatron_atesd.errors import CheckpointError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in {"weights/a.distcp": b"one", "weights/.metadata": b"two", "hf/config.json": b"{}"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    write_manifest(tmp_path, checksums(tmp_path, listed_files(tmp_path)))
    return tmp_path


def check(folder: Path) -> None:
    check_files(folder, read_manifest(folder))


def test_an_untouched_folder_passes(folder: Path) -> None:
    check(folder)
    assert listed_files(folder) == ["hf/config.json", "weights/.metadata", "weights/a.distcp"]


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="needs sha256sum")
def test_sha256sum_reads_the_list(folder: Path) -> None:
    assert subprocess.run(["sha256sum", "--strict", "-c", MANIFEST], cwd=folder, capture_output=True).returncode == 0


def test_every_flipped_bit_is_seen(folder: Path) -> None:
    """Of every file, the list included."""
    for path in [folder / name for name in (*listed_files(folder), MANIFEST)]:
        good = path.read_bytes()
        for bit in range(8 * len(good)):
            bad = bytearray(good)
            bad[bit // 8] ^= 1 << bit % 8
            path.write_bytes(bad)
            with pytest.raises(CheckpointError):
                check(folder)
        path.write_bytes(good)
    check(folder)


@pytest.mark.parametrize("name", ["weights/a.distcp", MANIFEST])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        check(folder)


def test_a_file_too_many_is_named(folder: Path) -> None:
    (folder / "weights" / "__1_0.distcp").write_bytes(b"of another save")
    with pytest.raises(CheckpointError, match=r"__1_0.distcp is not listed"):
        check(folder)


def test_a_cut_file_is_named(folder: Path) -> None:
    (folder / "weights" / "a.distcp").write_bytes(b"on")
    with pytest.raises(CheckpointError, match=r"a.distcp: its checksum differs"):
        check(folder)


def test_a_list_of_checksums_within_the_folder_is_a_file_like_others(folder: Path) -> None:
    (folder / "hf" / MANIFEST).write_text("downloaded with the model")
    with pytest.raises(CheckpointError, match=r"hf/SHA256SUMS is not listed"):
        check(folder)


def test_a_name_with_a_line_separator_of_unicode_is_read_back(folder: Path) -> None:
    (folder / "hf" / "a\u2028b.txt").write_text("notes")
    write_manifest(folder, checksums(folder, listed_files(folder)))
    check(folder)


def test_a_name_with_a_line_break_is_refused_when_written(folder: Path) -> None:
    (folder / "hf" / "a\nb.txt").write_text("notes")
    with pytest.raises(CheckpointError, match="holds a line break"):
        write_manifest(folder, checksums(folder, listed_files(folder)))
