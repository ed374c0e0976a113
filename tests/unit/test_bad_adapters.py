"""Adapters that cannot be converted: each is refused in one line that names file, value and remedy, and leaves nothing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints_convert import hf_to_megatron
from checkpoints_convert.command import single_process
from megatron_atesd.checkpoint.peft_config import peft_config
from megatron_atesd.model.lora import LoraSettings
from tests.support.adapter_folders import save_checkpoint
from tests.support.bad_input import refusal
from tests.support.convert_models import save_model

Change = Callable[[Path], object]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SETTINGS = LoraSettings(rank=4, alpha=6.0, targets=("q_proj", "down_proj"))
PREFIX = "base_model.model.model.layers"
A, B = f"{PREFIX}.1.self_attn.q_proj.lora_A.weight", f"{PREFIX}.0.mlp.down_proj.lora_B.weight"
INSTEAD = "merge it into its base with peft (merge_and_unload), and convert the whole model"
LIST = "must be a list of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"


def written(name: str, content: bytes | str) -> Change:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def config(**values: Any) -> Change:
    """adapter_config.json with other values; ... removes one."""

    def change(folder: Path) -> None:
        old = json.loads((folder / CONFIG).read_text()) | values
        (folder / CONFIG).write_text(json.dumps({name: value for name, value in old.items() if value is not ...}))

    return change


def tensors(edit: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def change(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        edit(found)
        save_file(found, folder / WEIGHTS, metadata={"format": "pt"})

    return change


def tensor(name: str, edit: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    return tensors(lambda found: found.update({name: edit(found[name]).contiguous()}))


def with_value(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda t: torch.where(torch.arange(t.numel()).view_as(t) == t.numel() - 3, torch.tensor(value), t)


def added(name: str) -> Change:
    return tensors(lambda found: found.update({name: torch.zeros(4, 32)}))


CASES: dict[str, tuple[Change, str]] = {
    "another method": (config(peft_type="IA3"), f"{CONFIG}: peft_type is 'IA3', must be 'LORA'; {INSTEAD}"),
    "no method": (config(peft_type=...), f"{CONFIG}: peft_type is None, must be 'LORA'"),
    "DoRA": (config(use_dora=True), f"{CONFIG}: use_dora is True, which adapters here do not have; {INSTEAD}"),
    "biases": (config(bias="all"), f"{CONFIG}: bias is 'all', which adapters here do not have; {INSTEAD}"),
    "biases of the adapter": (config(lora_bias=True), f"{CONFIG}: lora_bias is True, which adapters here do not have"),
    "other modules trained whole": (
        config(modules_to_save=["lm_head"]),
        f"{CONFIG}: modules_to_save is ['lm_head'], which adapters here do not have; {INSTEAD}",
    ),
    "ranks by layer": (config(rank_pattern={"q_proj": 8}), f"{CONFIG}: rank_pattern is {{'q_proj': 8}}, which adapters here do not have"),
    "alphas by layer": (
        config(alpha_pattern={"q_proj": 8}),
        f"{CONFIG}: alpha_pattern is {{'q_proj': 8}}, which adapters here do not have",
    ),
    "some layers": (config(layers_to_transform=[0]), f"{CONFIG}: layers_to_transform is [0], which adapters here do not have"),
    "layers repeated": (config(layer_replication=[[0, 2]]), f"{CONFIG}: layer_replication is [[0, 2]], which adapters here do not have"),
    "modules left out": (config(exclude_modules=["q_proj"]), f"{CONFIG}: exclude_modules is ['q_proj'], which adapters here do not have"),
    "single parameters": (config(target_parameters=["w"]), f"{CONFIG}: target_parameters is ['w'], which adapters here do not have"),
    "weights of inputs first": (config(fan_in_fan_out=True), f"{CONFIG}: fan_in_fan_out is True, which adapters here do not have"),
    "what no version here knows": (config(use_tomorrow=1), f"{CONFIG}: use_tomorrow is 1, which adapters here do not have"),
    "a start that changed the base": (
        config(init_lora_weights="pissa"),
        f"{CONFIG}: init_lora_weights is 'pissa', which also changes the base; {INSTEAD}",
    ),
    "a pattern of modules": (
        config(target_modules=".*_proj"),
        f"{CONFIG}: target_modules is the pattern '.*_proj', {LIST}; list the projections that it means",
    ),
    "all linear modules": (config(target_modules="all-linear"), f"{CONFIG}: target_modules is the pattern 'all-linear', {LIST}"),
    "the head": (
        config(target_modules=["q_proj", "lm_head"]),
        f"{CONFIG}: target_modules holds 'lm_head', {LIST}; if that has an adapter,",
    ),
    "the embedding": (config(target_modules=["embed_tokens"]), f"{CONFIG}: target_modules holds 'embed_tokens', {LIST}"),
    "whole paths": (
        config(target_modules=["model.layers.0.self_attn.q_proj"]),
        f"{CONFIG}: target_modules holds 'model.layers.0.self_attn.q_proj', {LIST}",
    ),
    "a module that is no text": (config(target_modules=[{"q_proj": 1}]), f"{CONFIG}: target_modules holds {{'q_proj': 1}}, {LIST}"),
    "no modules": (config(target_modules=[]), f"{CONFIG}: target_modules is [], {LIST}; list the projections"),
    "modules left to peft": (config(target_modules=None), f"{CONFIG}: target_modules is None, {LIST}; list the projections"),
    "rank 0": (config(r=0), f"{CONFIG}: LoRA rank is 0, must be at least 1; get the adapter again"),
    "half a rank": (config(r=4.5), f"{CONFIG}: r is 4.5, must be a whole number below 2147483648; get the adapter again"),
    "a rank as text": (config(r="4"), f"{CONFIG}: r is '4', must be a whole number"),
    "no rank": (config(r=...), f"{CONFIG}: r is None, must be a whole number"),
    "alpha 0": (config(lora_alpha=0), f"{CONFIG}: LoRA alpha is 0.0, must be greater than 0"),
    "an alpha without end": (config(lora_alpha=10**400), f"{CONFIG}: lora_alpha is 1000"),
    "an alpha that is no number": (config(lora_alpha=float("nan")), f"{CONFIG}: lora_alpha is nan, must be a number below"),
    "all dropped": (config(lora_dropout=1.0), f"{CONFIG}: LoRA dropout is 1.0, must be from 0 to below 1"),
    "rslora as text": (config(use_rslora="no"), f"{CONFIG}: use_rslora is 'no', must be true or false"),
    "config cut short": (written(CONFIG, '{"peft_type": '), f"{CONFIG}: cannot be read as JSON"),
    "config an array": (written(CONFIG, "[]"), f"{CONFIG}: must be a JSON object, is a list"),
    "no config": (lambda folder: (folder / CONFIG).unlink(), f"no {CONFIG} here; give the folder of a LoRA adapter that peft saved"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), f"{WEIGHTS}: missing, although {CONFIG} is here; get the adapter again"),
    "pickled weights": (
        lambda folder: (folder / WEIGHTS).rename(folder / "adapter_model.bin"),
        "adapter_model.bin: these weights are pickled, which may run foreign code; load the adapter once with peft",
    ),
    "weights that are none": (written(WEIGHTS, "<html>404</html>" * 9), f"{WEIGHTS}: damaged or incomplete"),
    "a projection missing": (tensors(lambda found: found.pop(A)), f"{WEIGHTS}: tensor {A} is missing; {CONFIG} promises it"),
    "targets that have no tensors": (
        config(target_modules=["q_proj", "down_proj", "v_proj"]),
        f"{WEIGHTS}: tensor {PREFIX}.0.self_attn.v_proj.lora_A.weight is missing; {CONFIG} promises it",
    ),
    "another rank than the config's": (
        tensor(A, lambda t: t[:3]),
        f"{WEIGHTS}: {A} has shape (3, 32), r of {CONFIG} and the base's config.json ask for (4, 32); give the base",
    ),
    "another base": (
        tensor(B, lambda t: t[:31]),
        f"{WEIGHTS}: {B} has shape (31, 4), r of {CONFIG} and the base's config.json ask for (32, 4)",
    ),
    "one dimension": (tensor(B, lambda t: t.flatten()), f"{WEIGHTS}: {B} has shape (128,), r of"),
    "tensors of more targets": (
        config(target_modules=["q_proj"]),
        f"{WEIGHTS}: {PREFIX}.0.mlp.down_proj.lora_A.weight is no LoRA factor of a target_modules of {CONFIG} in this base; {INSTEAD}",
    ),
    "a layer that the base lacks": (
        added(f"{PREFIX}.2.self_attn.q_proj.lora_A.weight"),
        "layers.2.self_attn.q_proj.lora_A.weight is no LoRA",
    ),
    "a name without peft's prefix": (
        tensors(lambda found: found.update({A.removeprefix("base_model.model."): found.pop(A)})),
        f"{WEIGHTS}: tensor {A} is missing",
    ),
    "a magnitude of DoRA": (added(f"{PREFIX}.0.self_attn.q_proj.lora_magnitude_vector"), "lora_magnitude_vector is no LoRA factor"),
    "a tensor twice": (added(A.removeprefix("base_model.model.")), f"{A.removeprefix('base_model.model.')} is no LoRA factor"),
    "int8": (tensor(A, lambda t: t.to(torch.int8)), f"{WEIGHTS}: {A} is stored as I8; give weights in fp32, bf16 or fp16"),
    "fp8": (tensor(A, lambda t: t.to(torch.float8_e4m3fn)), f"{WEIGHTS}: {A} is stored as F8_E4M3; give weights"),
    "not a number": (tensor(A, with_value(float("nan"))), f"{WEIGHTS}: {A} holds NaN or infinite weights"),
    "infinite": (tensor(B, with_value(float("inf"))), f"{WEIGHTS}: {B} holds NaN or infinite weights"),
    "a product without end": (
        tensors(lambda found: [found[name].fill_(1e30) for name in (A, A.replace("lora_A", "lora_B"))]),
        "model.layers.1.self_attn.q_proj with its adapter holds NaN or infinite weights",
    ),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hf and peft, which fit each other."""
    folder = tmp_path_factory.mktemp("good")
    save_model(folder / "hf")
    (folder / "peft").mkdir()
    (folder / "peft" / CONFIG).write_text(json.dumps(peft_config(SETTINGS, str(folder / "hf"))))
    sizes = {"self_attn.q_proj": (64, 32), "mlp.down_proj": (32, 48)}
    factors = {}
    for layer in range(2):
        for projection, (outputs, inputs) in sizes.items():
            for factor, shape in (("lora_A", (4, inputs)), ("lora_B", (outputs, 4))):
                factors[f"{PREFIX}.{layer}.{projection}.{factor}.weight"] = torch.rand(shape)
    save_file(factors, folder / "peft" / WEIGHTS, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("case", CASES)
def test_bad_folder(good: Path, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    change, says = CASES[case]
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    change(tmp_path / "peft")
    said = refusal("hf_to_megatron", ["--hf", tmp_path / "hf", "--adapter", tmp_path / "peft", "--out", tmp_path / "out"], tmp_path, capsys)
    assert says in said
    if case != "a product without end":
        assert said.startswith(str(tmp_path / "peft"))


def test_the_good_folder_is_one(good: Path, tmp_path: Path) -> None:
    with single_process():
        hf_to_megatron.convert(good / "hf", tmp_path / "out", adapter=good / "peft")
    assert (tmp_path / "out" / "SHA256SUMS").is_file()


def test_an_adapter_is_no_model(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal("hf_to_megatron", ["--hf", good / "peft", "--out", tmp_path / "out"], tmp_path, capsys)
    assert said == f"{good / 'peft'}: a LoRA adapter, not a model; give the folder of its base with --hf, and this one with --adapter"


def test_an_output_that_would_swallow_the_adapter(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    arguments = ["--hf", good / "hf", "--adapter", tmp_path / "peft", "--out", tmp_path / "peft", "--force"]
    assert "lie in one another" in refusal("hf_to_megatron", arguments, tmp_path, capsys)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hf, and megatron made of it."""
    folder = tmp_path_factory.mktemp("trained")
    save_model(folder / "hf")
    with single_process():
        hf_to_megatron.convert(folder / "hf", folder / "megatron")
    return folder


def other_base(folder: Path) -> None:
    weights = load_file(folder / "hf" / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, folder / "hf" / "model.safetensors", metadata={"format": "pt"})


EXPORTS: dict[str, tuple[Change, list[str], str]] = {
    "merge of a whole model": (
        lambda folder: None,
        ["--megatron", "megatron", "--merge"],
        "megatron: holds a whole model, no LoRA adapters to merge into a base; leave --merge and --base out",
    ),
    "base of a whole model": (lambda folder: None, ["--megatron", "megatron", "--base", "hf"], "megatron: holds a whole model"),
    "a base that is gone": (
        lambda folder: shutil.rmtree(folder / "hf"),
        ["--megatron", "step_1", "--merge"],
        "step_1: holds adapters alone, and the base that they were trained on is not in",
    ),
    "a base that is gone, for --verify": (
        lambda folder: shutil.rmtree(folder / "hf"),
        ["--megatron", "step_1", "--verify"],
        "step_1: holds adapters alone, and the base that they were trained on is not in",
    ),
    "a base that changed": (other_base, ["--megatron", "step_1", "--merge"], "hf: not the base that the adapters of"),
    "a given base that is another": (lambda folder: None, ["--megatron", "step_1", "--base", "megatron"], "megatron: not the base that"),
    "a given base that is no model": (
        lambda folder: (folder / "x").mkdir(),
        ["--megatron", "step_1", "--base", "x"],
        "x: no Hugging Face folder and no Megatron model folder; give the base",
    ),
    "a teacher that is the base": (
        lambda folder: None,
        ["--megatron", "step_1", "--weights", "teacher"],
        "step_1: holds no adapters of a teacher: with distill.teacher initial it is the base itself",
    ),
}


@pytest.mark.parametrize("case", EXPORTS)
def test_bad_export(trained: Path, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    change, options, says = EXPORTS[case]
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    save_checkpoint(tmp_path / "step_1", tmp_path / "hf", SETTINGS)
    change(tmp_path)
    arguments = [tmp_path / option if option in ("hf", "megatron", "step_1", "x") else option for option in options]
    assert f"{tmp_path}/{says}" in refusal("megatron_to_hf", [*arguments, "--out", tmp_path / "out"], tmp_path, capsys)


@pytest.mark.parametrize("out", ["hf", "hf/adapter"])
@pytest.mark.parametrize("options", [[], ["--merge"]])
def test_the_base_of_adapters_is_not_written_over(
    trained: Path, tmp_path: Path, out: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    save_checkpoint(tmp_path / "step_1", tmp_path / "hf", SETTINGS)
    arguments = ["--megatron", tmp_path / "step_1", "--out", tmp_path / out, "--force", *options]
    assert "lie in one another" in refusal("megatron_to_hf", arguments, tmp_path, capsys)


FACTOR = "adapters.model.layers.1.self_attn.q_proj.lora_A.weight"


def dropped(state: dict[str, Any]) -> None:
    del state["model"][FACTOR]


def one_nan(state: dict[str, Any]) -> None:
    with torch.no_grad():
        state["model"][FACTOR].data[2, 5] = float("nan")


CHECKPOINTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a projection missing": (dropped, f"{FACTOR} is missing; its LoRA settings promise it, use another checkpoint"),
    "another rank": (
        lambda state: state["lora"]["settings"].update(rank=8),
        "adapters.model.layers.0.mlp.down_proj.lora_A.weight has shape (4, 48), config.json and its LoRA settings ask for (8, 48)",
    ),
    "fewer targets": (
        lambda state: state["lora"]["settings"].update(targets=["down_proj"]),
        "adapters.model.layers.0.self_attn.q_proj.lora_A.weight is no factor that its LoRA settings name",
    ),
    "not a number": (one_nan, f"{FACTOR} holds NaN or infinite weights"),
}


@pytest.mark.parametrize("options", [[], ["--merge"]])
@pytest.mark.parametrize("case", CHECKPOINTS)
def test_bad_checkpoint(trained: Path, tmp_path: Path, case: str, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    change, says = CHECKPOINTS[case]
    save_checkpoint(tmp_path / "step_1", trained / "hf", SETTINGS, change=change)
    said = refusal("megatron_to_hf", ["--megatron", tmp_path / "step_1", "--out", tmp_path / "out", *options], tmp_path, capsys)
    assert said.startswith(f"{tmp_path}/step_1")
    assert says in said
