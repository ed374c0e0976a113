"""A checkpoint of adapters: it brings its base with it, by checksum, and what does not belong together is refused in one line."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints_convert.hf_to_megatron import convert
from megatron_atesd.checkpoint.base_model import AdapterRecord, adapter_record, base_folders, base_model, find_base
from megatron_atesd.checkpoint.model_folder import load_model_weights
from megatron_atesd.checkpoint.reading import write_folder
from megatron_atesd.config import LoraConfig
from megatron_atesd.errors import AtesdError, CheckpointError, ConfigError
from megatron_atesd.model.gpt import HiddenStateGPT, build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.lora import LoraSettings, adapter_parameters, adapters_off, add_adapters
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.model.trained import lora_settings, trained_prefix, trained_state
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.train.checks import check_whole
from tests.support.convert_models import save_model
from tests.support.lora_case import IDS_BS, filled

SETTINGS = LoraSettings(rank=4, alpha=6.0, targets=("q_proj", "down_proj"), rslora=True)


@pytest.fixture(autouse=True)
def _session():
    with parallel_session():
        yield


def plain_model(folder: Path) -> HiddenStateGPT:
    arch = read_architecture(folder)
    return build_model(arch, transformer_config(arch, 1, 1, False, "fp32"))


def save_adapters(checkpoint: Path, base: Path, hf: Path) -> HiddenStateGPT:
    """Adapters whose B is no longer zero; the model that has them."""
    model = plain_model(hf)
    load_model_weights(model, base)
    add_adapters(model, SETTINGS)
    with torch.no_grad():
        for name, parameter in adapter_parameters(model).items():
            parameter.copy_(filled(name, parameter.shape))
    record = AdapterRecord(SETTINGS, base_model(base))
    write_folder(checkpoint, {"model": trained_state(model, trained_prefix(model)), **record.state()}, hf)
    return model


@pytest.fixture(params=["Hugging Face", "Megatron"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    save_model(tmp_path / "hf")
    if request.param == "Megatron":
        convert(tmp_path / "hf", tmp_path / "base")
        return tmp_path / "base"
    return tmp_path / "hf"


@torch.no_grad()
def test_a_checkpoint_of_adapters_loads_with_its_base(tmp_path: Path, base: Path) -> None:
    trained = save_adapters(tmp_path / "step_1", base, tmp_path / "hf")
    loaded = plain_model(tmp_path / "hf")
    load_model_weights(loaded, tmp_path / "step_1")
    assert torch.equal(loaded(IDS_BS), trained(IDS_BS))
    whole = plain_model(tmp_path / "hf")
    load_model_weights(whole, base)
    with adapters_off(loaded):
        assert torch.equal(loaded(IDS_BS), whole(IDS_BS))
    assert not torch.allclose(trained(IDS_BS), whole(IDS_BS), atol=0.1)
    record = adapter_record(tmp_path / "step_1")
    assert record is not None
    assert record.settings == SETTINGS


def test_a_base_that_has_been_moved_is_found_by_its_new_path_only(tmp_path: Path, base: Path) -> None:
    save_adapters(tmp_path / "step_1", base, tmp_path / "hf")
    record = adapter_record(tmp_path / "step_1")
    assert record is not None
    assert base_folders(record, tmp_path / "step_1") == [base]
    moved = base.rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=re.escape(f"the base that they were trained on is not in {base}; say where")):
        base_folders(record, tmp_path / "step_1")
    hf = moved if base.name == "hf" else tmp_path / "hf"
    load_model_weights(plain_model(hf), tmp_path / "step_1", str(moved))
    save_model(base, "qwen3", tie_word_embeddings=False)  # another model in its place
    load_model_weights(plain_model(hf), tmp_path / "step_1", str(moved))
    with pytest.raises(CheckpointError, match="not the base that the adapters"):
        load_model_weights(plain_model(hf), tmp_path / "step_1")


def test_a_base_in_another_form_is_refused_and_told_so(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf")
    save_adapters(tmp_path / "step_1", hf, hf)
    convert(hf, tmp_path / "converted")
    record = adapter_record(tmp_path / "step_1")
    assert record is not None
    with pytest.raises(CheckpointError, match=r"that was a folder with model.safetensors, and a base is known by its files"):
        find_base(record, tmp_path / "step_1", [tmp_path / "converted"])
    with pytest.raises(CheckpointError, match="no Hugging Face folder and no Megatron model folder"):
        find_base(record, tmp_path / "step_1", [tmp_path / "nothing"])


def test_a_damaged_base_is_found(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf")
    convert(hf, tmp_path / "base")
    save_adapters(tmp_path / "step_1", tmp_path / "base", hf)
    (file,) = (tmp_path / "base" / "weights").glob("__0_*.distcp")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="its checksum differs"):
        load_model_weights(plain_model(hf), tmp_path / "step_1")


def other_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] += 1e-6
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_another_base_is_refused_by_its_checksums(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf")
    save_adapters(tmp_path / "step_1", hf, hf)
    record = adapter_record(tmp_path / "step_1")
    assert record is not None
    copy = shutil.copytree(hf, tmp_path / "copy")
    assert find_base(record, tmp_path / "step_1", [tmp_path / "none", copy]) == copy
    other_weights(copy)
    expected = (
        f"{copy}: not the base that the adapters of {tmp_path / 'step_1'} were trained on ({hf}): model.safetensors differs; "
        "give that model, or an unchanged copy of it"
    )
    with pytest.raises(CheckpointError) as error:
        find_base(record, tmp_path / "step_1", [copy])
    assert str(error.value) == expected


def lost_projection(model: HiddenStateGPT, state: dict[str, object]) -> None:
    del state["adapters.model.layers.1.mlp.down_proj.lora_A.weight"]


def other_rank(model: HiddenStateGPT, state: dict[str, object]) -> None:
    smaller = plain_model(Path(model.arch_folder))  # pyright: ignore[reportArgumentType]
    add_adapters(smaller, LoraSettings(rank=2, alpha=6.0, targets=SETTINGS.targets))
    state.update(trained_state(smaller, trained_prefix(smaller)))


@pytest.mark.parametrize(
    ("damage", "said"), [(lost_projection, "down_proj.lora_A.weight"), (other_rank, "lora_A.weight")], ids=["projection", "rank"]
)
def test_adapters_that_are_not_what_the_record_says_are_refused(
    tmp_path: Path, damage: Callable[[HiddenStateGPT, dict[str, object]], None], said: str
) -> None:
    hf = save_model(tmp_path / "hf")
    model = save_adapters(tmp_path / "good", hf, hf)
    model.arch_folder = str(hf)  # pyright: ignore[reportArgumentType]
    state = trained_state(model, trained_prefix(model))
    damage(model, state)
    write_folder(tmp_path / "step_1", {"model": state, **AdapterRecord(SETTINGS, base_model(hf)).state()}, hf)
    with pytest.raises(CheckpointError, match=re.escape(said)) as error:
        load_model_weights(plain_model(hf), tmp_path / "step_1")
    assert "\n" not in str(error.value)


def test_a_training_of_all_weights_cannot_begin_from_adapters(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf")
    save_adapters(tmp_path / "step_1", hf, hf)
    with pytest.raises(ConfigError, match=r"a checkpoint of adapters on .*; give a whole model: megatron_to_hf.py --merge makes one"):
        check_whole(tmp_path / "step_1")
    convert(hf, tmp_path / "whole")
    check_whole(tmp_path / "whole")
    check_whole(hf)


def test_alpha_is_twice_the_rank_and_the_dtype_the_model_s_unless_they_are_given() -> None:
    settings = lora_settings(LoraConfig(rank=64), "bf16")
    assert (settings.alpha, settings.scaling, settings.dtype) == (128.0, 2.0, torch.bfloat16)
    given = lora_settings(LoraConfig(rank=16, alpha=4.0, rslora=True, dtype="fp32", targets=["o_proj"], dropout=0.1), "bf16")
    assert given == LoraSettings(16, 4.0, 0.1, ("o_proj",), True, torch.float32)
    assert given.scaling == 1.0


def test_a_damaged_checkpoint_raises_what_users_see(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf")
    save_adapters(tmp_path / "step_1", hf, hf)
    (hf / "model.safetensors").unlink()
    with pytest.raises(AtesdError, match="no weights here"):
        load_model_weights(plain_model(hf), tmp_path / "step_1")
