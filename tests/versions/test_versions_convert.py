"""Model folders of one version of megatron.core are another one's, those that only 0.19 can read aside."""

import pytest
import torch

from megatron_atesd.checkpoint.manifest import read_manifest
from megatron_atesd.faults.state import differences
from tests.support.convert_models import read_tensors
from tests.support.version_folders import MODELS, OWN, PLAIN, converted, exported, read_by_us, saved_by_megatron
from tests.support.versions import ALL, MARKS, OTHERS, PAIRS, Lab, Version

pytestmark = MARKS
NEW = [version for version in ALL if version.has_no_common_file()]
OLD = [version for version in ALL if version not in NEW]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("first", "second"), PAIRS, ids=str)
def test_what_one_version_converted_another_exports_bit_for_bit(lab: Lab, first: Version, second: Version, model: str) -> None:
    out = lab.of(second, exported, lab.of(first, converted)) / model
    assert differences(read_tensors(out), read_tensors(lab.inputs / model)) == []


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_converted_folders_are_the_same_files(lab: Lab, other: Version, model: str) -> None:
    found, expected = (read_manifest(lab.of(version, converted) / model) for version in (other, ALL[0]))
    assert found == expected


@pytest.mark.parametrize("writer", NEW, ids=str)
def test_from_0_19_on_megatron_core_itself_writes_no_common_file(lab: Lab, writer: Version) -> None:
    """Otherwise the two tests below would say nothing."""
    assert not (lab.of(writer, saved_by_megatron) / OWN / "weights" / "common.pt").exists()


READABLE = [(writer, reader) for writer in ALL for reader in ALL if reader in NEW or writer in OLD]


@pytest.mark.parametrize(("writer", "reader"), READABLE, ids=str)
def test_a_folder_of_megatron_cores_own_save_is_read(lab: Lab, writer: Version, reader: Version) -> None:
    found = lab.of(reader, read_by_us, lab.of(writer, saved_by_megatron))
    assert torch.load(found / "plain") == PLAIN
    assert differences(read_tensors(found / OWN), read_tensors(lab.inputs / OWN)) == []


@pytest.mark.parametrize("reader", OLD, ids=str)
@pytest.mark.parametrize("writer", NEW, ids=str)
def test_what_only_0_19_reads_is_refused_before(lab: Lab, writer: Version, reader: Version) -> None:
    folder = lab.of(writer, saved_by_megatron)
    refusal = (lab.of(reader, read_by_us, folder) / "refusal").read_text()
    expected = "has no common.pt; if megatron.core 0.19 or later wrote it, use that version, else another checkpoint"
    assert refusal == f"{folder / OWN / 'weights'}: {expected}"
