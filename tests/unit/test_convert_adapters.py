"""Converting adapters: to a PEFT folder and back bit by bit, merged into bases of both kinds, and a gate that sees one wrong value."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from checkpoints_convert import hf_to_megatron, megatron_to_hf, peft_out, sources
from checkpoints_convert.command import TOLERANCE, single_process
from checkpoints_convert.models import megatron_model, merged_model
from megatron_atesd.checkpoint.adapter_tensors import product
from megatron_atesd.checkpoint.model_folder import find_hf
from megatron_atesd.checkpoint.run_checkpoints import step_folders
from megatron_atesd.errors import CheckpointError, ConversionError
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.lora import LoraSettings
from tests.support.adapter_folders import adapted, logits_of, save_checkpoint, save_peft
from tests.support.convert_models import end_process_groups, read_tensors, save_model
from tests.support.lora_case import assert_same
from tests.support.small_tokenizers import CHATML, tokenizer

SETTINGS = LoraSettings(rank=4, alpha=6.0)
SOME = LoraSettings(rank=8, alpha=6.0, targets=("k_proj", "o_proj", "gate_proj"), rslora=True, dropout=0.5)
CASES: dict[str, tuple[dict[str, Any], LoraSettings]] = {
    "tied qwen3, all": ({}, SETTINGS),
    "untied llama, some": ({"family": "llama", "tie_word_embeddings": False}, SOME),
    "bf16": ({"dtype": torch.bfloat16}, SETTINGS),
    "fp16, adapters in bf16": ({"dtype": torch.float16}, LoraSettings(rank=4, dtype=torch.bfloat16)),
}
ALL = pytest.mark.parametrize(("model", "settings"), CASES.values(), ids=CASES)
BASES = pytest.mark.parametrize("kind", ["hf", "megatron"])


def save_base(folder: Path, kind: str, **model: Any) -> Path:
    """hf, and for the kind megatron also the model folder made of it; the base of that kind."""
    source = save_model(folder / "hf", **model)
    if kind == "hf":
        return source
    with single_process():
        hf_to_megatron.convert(source, folder / "megatron")
    return folder / "megatron"


def merged_by_hand(base: Path, factors: Mapping[str, Tensor], scaling: float) -> dict[str, Tensor]:
    """Every tensor of the Hugging Face folder, in its type."""
    tensors = read_tensors(base)
    for name, b in factors.items():
        if name.endswith(".lora_B.weight"):
            weight = name.replace(".lora_B", "")
            a = factors[name.replace("lora_B", "lora_A")]
            change = torch.stack([sum(b[row, k].double() * a[k].double() for k in range(len(a))) for row in range(len(b))])  # pyright: ignore
            tensors[weight] = (tensors[weight].double() + scaling * change).to(tensors[weight].dtype)
    return tensors


def assert_rounded_alike(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """The same tensors; where sums were made in another order, at most the last bit may differ."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        step = torch.finfo(tensor.dtype).eps
        torch.testing.assert_close(found[name], tensor, rtol=step, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}")
        assert float((found[name] != tensor).float().mean()) < (0.9 if tensor.dtype == torch.float32 else 0.01), name


@pytest.fixture(autouse=True)
def _no_groups_left() -> Iterator[None]:
    yield
    end_process_groups()


@ALL
@BASES
def test_merged_weights_are_base_plus_product_and_nothing_else_moves(
    tmp_path: Path, model: dict[str, Any], settings: LoraSettings, kind: str
) -> None:
    base = save_base(tmp_path, kind, **model)
    factors = save_checkpoint(tmp_path / "step_1", base, settings)
    with single_process():
        megatron_to_hf.convert(tmp_path / "step_1", tmp_path / "out", tolerance=TOLERANCE, merge=True)
    found = read_tensors(tmp_path / "out")
    assert_rounded_alike(found, merged_by_hand(tmp_path / "hf", factors, settings.scaling))
    moved = {name for name, tensor in read_tensors(tmp_path / "hf").items() if not torch.equal(found[name], tensor)}
    assert moved == {name.replace(".lora_A", "") for name in factors if ".lora_A" in name}
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads((tmp_path / "hf" / "config.json").read_text())


@pytest.mark.parametrize("settings", [SETTINGS, SOME])
def test_merged_and_unmerged_logits_agree(tmp_path: Path, settings: LoraSettings) -> None:
    base = save_model(tmp_path / "hf", tie_word_embeddings=False)
    save_checkpoint(tmp_path / "step_1", base, settings)
    with single_process():
        megatron_to_hf.convert(tmp_path / "step_1", tmp_path / "out", merge=True)
        unmerged = adapted(base, settings)
        unmerged.eval()
        logits = logits_of(unmerged)
        assert_same({"logits": logits_of(merged_model(unmerged))}, {"logits": logits}, 1e-5)
    assert_same({"logits": logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))}, {"logits": logits}, 1e-5)


@ALL
@BASES
def test_a_peft_folder_is_verified_on_bases_of_both_kinds(
    tmp_path: Path, model: dict[str, Any], settings: LoraSettings, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_base(tmp_path, kind, **model)
    save_checkpoint(tmp_path / "step_1", base, settings)
    with single_process():
        megatron_to_hf.convert(tmp_path / "step_1", tmp_path / "out", "bf16", tolerance=TOLERANCE)
    said = capsys.readouterr().err
    assert "top-1 equal at 64 of 64 positions" in said
    assert ("a Megatron model folder: peft and vLLM want its Hugging Face folder" in said) == (kind == "megatron")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)


def test_a_peft_folder_has_the_tokenizer_and_no_config_of_a_model(tmp_path: Path) -> None:
    base = save_model(tmp_path / "hf", vocab_size=500)
    tokenizer(CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_end|>").save_pretrained(base)
    (base / "README.md").write_text("of the base")
    save_checkpoint(tmp_path / "step_1", base, SETTINGS)
    with single_process():
        megatron_to_hf.convert(tmp_path / "step_1", tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} == names
    with pytest.raises(CheckpointError, match="a LoRA adapter, not a model; give its base"):
        find_hf(tmp_path / "out")


def test_a_run_directory_means_its_newest_checkpoint(tmp_path: Path) -> None:
    base = save_model(tmp_path / "hf")
    for update, rank in ((1, 2), (2, 4)):
        save_checkpoint(tmp_path / "run" / "checkpoints" / f"step_{update}", base, LoraSettings(rank=rank))
    assert len(step_folders(tmp_path / "run" / "checkpoints")) == 2
    megatron_to_hf.main(["--megatron", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--verify"])
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 4


@pytest.mark.parametrize("merge", [False, True])
def test_a_teacher_is_exported_from_its_own_factors_in_fp32(tmp_path: Path, merge: bool) -> None:
    base = save_model(tmp_path / "hf")
    factors = save_checkpoint(tmp_path / "step_1", base, LoraSettings(rank=4, dtype=torch.bfloat16), teacher=0.5)
    with single_process():
        megatron_to_hf.convert(tmp_path / "step_1", tmp_path / "out", tolerance=TOLERANCE, weights="teacher", merge=merge)
    average = {name: factor.float() * 0.5 for name, factor in factors.items()}
    if merge:
        assert_rounded_alike(read_tensors(tmp_path / "out"), merged_by_hand(base, average, 2.0 * 16 / 4))
        return
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(torch.equal(written[f"base_model.model.{name}"], value) for name, value in average.items())
    assert {value.dtype for value in written.values()} == {torch.float32}


def test_a_base_that_moved_is_found_where_it_is_said_to_be(tmp_path: Path) -> None:
    base = save_model(tmp_path / "hf")
    save_checkpoint(tmp_path / "step_1", base, SETTINGS)
    base.rename(tmp_path / "moved")
    with single_process():
        megatron_to_hf.convert(tmp_path / "step_1", tmp_path / "unread")
        megatron_to_hf.convert(tmp_path / "step_1", tmp_path / "out", tolerance=TOLERANCE, base=tmp_path / "moved")
        megatron_to_hf.convert(tmp_path / "step_1", tmp_path / "whole", tolerance=TOLERANCE, base=tmp_path / "moved", merge=True)
    names = [json.loads((tmp_path / out / "adapter_config.json").read_text())["base_model_name_or_path"] for out in ("unread", "out")]
    assert names == [str(tmp_path / "hf"), str(tmp_path / "moved")]


@ALL
def test_a_start_with_an_adapter_is_the_base_with_it_merged_in(tmp_path: Path, model: dict[str, Any], settings: LoraSettings) -> None:
    base = save_model(tmp_path / "hf", **model)
    save_peft(tmp_path / "peft", base, settings)
    factors = {name.removeprefix("base_model.model."): v for name, v in load_file(tmp_path / "peft" / "adapter_model.safetensors").items()}
    with single_process():
        hf_to_megatron.convert(base, tmp_path / "megatron", tolerance=TOLERANCE, adapter=tmp_path / "peft")
        megatron_to_hf.convert(tmp_path / "megatron", tmp_path / "back")
    assert_rounded_alike(read_tensors(tmp_path / "back"), merged_by_hand(base, factors, settings.scaling))


def test_a_start_with_an_adapter_gives_the_logits_of_peft(tmp_path: Path) -> None:
    base = save_model(tmp_path / "hf", tie_word_embeddings=False)
    theirs = logits_of(save_peft(tmp_path / "peft", base, SOME))
    arguments = ["--hf", str(base), "--adapter", str(tmp_path / "peft"), "--out", str(tmp_path / "megatron"), "--verify"]
    hf_to_megatron.main(arguments)
    with single_process():
        model = megatron_model(tmp_path / "megatron", "model.", read_architecture(base))
        assert_same({"logits": logits_of(model)}, {"logits": theirs})


@pytest.mark.parametrize("how", ["out", "merged", "in"])
def test_verify_catches_one_value_that_went_wrong(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_model(tmp_path / "hf")
    save_checkpoint(tmp_path / "step_1", base, SETTINGS)
    save_peft(tmp_path / "peft", base, SETTINGS)

    def tampered(a: Tensor, b: Tensor, settings: LoraSettings) -> Tensor:
        change = product(a, b, settings)
        change[0, 0] += 0.5 if b.shape[0] == 64 else 0
        return change

    class Tampered(peft_out.SafetensorsFolder):
        def append(self, name: str, rows: Tensor) -> None:
            super().append(name, rows.index_fill(0, torch.tensor(1), 0.0) if name.endswith("1.mlp.up_proj.lora_A.weight") else rows)

    monkeypatch.setattr(sources, "product", tampered)
    monkeypatch.setattr(peft_out, "SafetensorsFolder", Tampered)
    before = {path.name for path in tmp_path.iterdir()}
    command, source, options = {
        "out": (megatron_to_hf, "step_1", []),
        "merged": (megatron_to_hf, "step_1", ["--merge"]),
        "in": (hf_to_megatron, "hf", ["--adapter", str(tmp_path / "peft")]),
    }[how]
    option = "--hf" if how == "in" else "--megatron"
    with pytest.raises(ConversionError, match="verification failed: logits differ by up to"):
        command.main([option, str(tmp_path / source), "--out", str(tmp_path / "out"), "--verify", *options])
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_checkpoint_of_adapters_holds_no_base(tmp_path: Path) -> None:
    base = save_model(tmp_path / "hf")
    save_checkpoint(tmp_path / "step_1", base, SETTINGS)
    shutil.rmtree(base)
    with single_process():
        megatron_to_hf.convert(tmp_path / "step_1", tmp_path / "out")
    assert sum(tensor.numel() for tensor in load_file(tmp_path / "out" / "adapter_model.safetensors").values()) == sum(
        rank_sizes(read_architecture(tmp_path / "step_1" / "hf"), 4)
    )


def rank_sizes(arch: Any, rank: int) -> list[int]:
    """Values in A and B of each projection, written out."""
    heads, groups = arch.heads * arch.head_size, arch.query_groups * arch.head_size
    sizes = {"q": (arch.hidden, heads), "k": (arch.hidden, groups), "v": (arch.hidden, groups), "o": (heads, arch.hidden)}
    mlp = [(arch.hidden, arch.ffn)] * 2 + [(arch.ffn, arch.hidden)]
    return [rank * (inputs + outputs) for inputs, outputs in [*sizes.values(), *mlp]] * arch.layers
