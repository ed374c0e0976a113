"""A checkpoint from elsewhere cannot run code: each of its files that holds a pickle is tried with a payload that would touch a file."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, BytesStorageMetadata, Metadata

from checkpoints_convert import hf_to_megatron, megatron_to_hf
from checkpoints_convert.command import single_process, whole_model
from megatron_atesd.checkpoint.plain_values import COMMON_OBJECT, READS_OBJECT
from megatron_atesd.checkpoint.reading import read_folder, read_plain_values
from megatron_atesd.checkpoint.safe_pickle import check_metadata, guarded
from megatron_atesd.checkpoint.torch_dist import StoredTensors
from megatron_atesd.errors import CheckpointError
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.trained import MODEL_PREFIX
from tests.support.convert_models import end_process_groups, save_model


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    hf_to_megatron.main(["--hf", str(save_model(folder / "hf")), "--out", str(folder / "megatron")])
    return folder / "megatron"


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """Without checksums, which would find the change first: who makes the folder makes those, too."""
    shutil.copytree(good, tmp_path / "megatron")
    (tmp_path / "megatron" / "SHA256SUMS").unlink()
    return tmp_path / "megatron"


def edit_metadata(folder: Path, change: Any) -> None:
    path = folder / "weights" / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))


def refusal(folder: Path) -> str:
    """What the export says; it must write nothing, and no payload may have run."""
    touched, out = folder.parent / "touched", folder.parent / "out"
    with pytest.raises(CheckpointError) as caught:
        megatron_to_hf.main(["--megatron", str(folder), "--out", str(out)])
    end_process_groups()
    assert not touched.exists()
    assert not out.exists()
    return str(caught.value)


def test_what_our_own_files_hold_passes(good: Path) -> None:
    check_metadata(good / "weights")
    assert StoredTensors(good / "weights", MODEL_PREFIX).dtypes() == {torch.float32}


def test_code_in_metadata(folder: Path) -> None:
    edit_metadata(folder, lambda metadata: setattr(metadata, "planner_data", Payload(folder.parent / "touched")))
    assert f"{folder / 'weights' / '.metadata'}: asks for posix.mkdir, which has no place in a checkpoint" in refusal(folder)


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "torch.load", "torch.hub.load", "torch.distributed.checkpoint.metadata.os"])
def test_names_outside_the_list_in_every_protocol(tmp_path: Path, name: str, protocol: int) -> None:
    module, _, attribute = name.rpartition(".")
    stack_global = (
        b"\x80\x04\x8c" + bytes([len(module)]) + module.encode() + b"\x8c" + bytes([len(attribute)]) + attribute.encode() + b"\x93."
    )
    plain_global = b"\x80" + bytes([protocol]) + f"c{module}\n{attribute}\n.".encode()
    (tmp_path / ".metadata").write_bytes(stack_global if protocol >= 4 else plain_global)
    with pytest.raises(CheckpointError, match=f"asks for {name}"):
        check_metadata(tmp_path)


def test_a_dotted_name_does_not_reach_behind_an_allowed_one(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(b"\x80\x04\x8c\x05torch\x8c\x10Size.__reduce__.\x93.")
    with pytest.raises(CheckpointError):
        check_metadata(tmp_path)


class Got:
    """Unpickled, it is what getattr gives."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, self.arguments


def test_a_member_of_an_enum_by_its_name_passes(folder: Path) -> None:
    """As Python 3.11.2 pickles it."""
    member = _MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT
    edit_metadata(folder, lambda metadata: setattr(metadata, "planner_data", Got(_MEM_FORMAT_ENCODING, member.name)))
    check_metadata(folder / "weights")


@pytest.mark.parametrize(
    "arguments",
    [(_MEM_FORMAT_ENCODING, "__class__"), (Metadata, "__init__"), (_MEM_FORMAT_ENCODING, "mro"), (torch.Size, "count")],
    ids=str,
)
def test_an_attribute_of_anything_else(folder: Path, arguments: tuple[Any, str]) -> None:
    edit_metadata(folder, lambda metadata: setattr(metadata, "planner_data", Got(*arguments)))
    assert "asks for builtins.getattr, which has no place in a checkpoint" in refusal(folder)


def test_code_in_common(folder: Path) -> None:
    torch.save({"run": Payload(folder.parent / "touched")}, folder / "weights" / "common.pt")
    assert "cannot be loaded" in refusal(folder)


def test_code_in_a_tensor(folder: Path) -> None:
    """The file is replaced, every record of .metadata pointing at the payload."""
    torch.save(Payload(folder.parent / "touched"), folder / "weights" / "__0_0.distcp")
    size = (folder / "weights" / "__0_0.distcp").stat().st_size

    def point_at_payload(metadata: Any) -> None:
        for record in metadata.storage_data.values():
            record.relative_path, record.offset, record.length = "__0_0.distcp", 0, size

    edit_metadata(folder, point_at_payload)
    assert "cannot be loaded" in refusal(folder)


def test_code_in_an_object_beside_the_tensors(folder: Path) -> None:
    """torch reads these with weights_only=False when they are asked for, as a GPTModel does, and an optimizer may."""
    hide_in_objects(folder, lambda name: True)
    with single_process(), pytest.raises(CheckpointError, match="cannot be loaded"):
        read_folder(folder, whole_model(read_architecture(folder / "hf"), "fp32").chunks[0].sharded_state_dict(prefix="model."))
    end_process_groups()
    assert not (folder.parent / "touched").exists()


def hide_in_objects(folder: Path, chosen: Callable[[str], bool]) -> None:
    """A payload in place of each object whose name is `chosen`."""
    file = folder / "weights" / "__9_9.distcp"
    torch.save(Payload(folder.parent / "touched"), file)

    def point_at_payload(metadata: Any) -> None:
        names = {index: metadata.state_dict_metadata[index.fqn] for index in metadata.storage_data}
        hidden = [index for index, stored in names.items() if isinstance(stored, BytesStorageMetadata) and chosen(index.fqn)]
        assert hidden
        for index in hidden:
            record = metadata.storage_data[index]
            record.relative_path, record.offset, record.length = file.name, 0, file.stat().st_size

    edit_metadata(folder, point_at_payload)


@pytest.mark.skipif(not READS_OBJECT, reason="megatron.core before 0.19 reads no plain values from an object")
def test_code_in_the_object_with_the_plain_values(folder: Path) -> None:
    """Where there is no common.pt, as in a folder that 0.19 itself writes."""
    (folder / "weights" / "common.pt").unlink()
    assert read_plain_values(folder) == {}
    hide_in_objects(folder, COMMON_OBJECT.__eq__)
    assert "cannot be loaded" in refusal(folder)


def test_code_in_that_object_is_never_read_beside_common(folder: Path) -> None:
    torch.save({"run": 7}, folder / "weights" / "common.pt")
    hide_in_objects(folder, COMMON_OBJECT.__eq__)
    assert read_plain_values(folder) == {"run": 7}
    megatron_to_hf.main(["--megatron", str(folder), "--out", str(folder.parent / "out")])
    assert not (folder.parent / "touched").exists()


def test_a_file_outside_of_the_folder(folder: Path) -> None:
    def leave(metadata: Any) -> None:
        next(iter(metadata.storage_data.values())).relative_path = "../../secret"

    edit_metadata(folder, leave)
    assert "names '../../secret', which is no file of this folder" in refusal(folder)


def test_a_damaged_metadata_raises_nothing_else(good: Path, tmp_path: Path) -> None:
    """What still reads is for the checksums to find."""
    data = (good / "weights" / ".metadata").read_bytes()
    refused = 0
    for place in range(0, len(data), 89):
        (tmp_path / ".metadata").write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        try:
            check_metadata(tmp_path)
        except CheckpointError:
            refused += 1
    assert refused > 5


def test_the_guard_ends_with_its_block(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    with guarded(good / "weights"):
        assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
    assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "0"
