"""What the converters refuse, what they say, and that nothing half-finished stays behind."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from checkpoints_convert import hf_to_megatron, megatron_to_hf, stream
from checkpoints_convert.command import single_process, whole_model
from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.checkpoint.model_folder import find_hf, load_model_weights
from megatron_atesd.checkpoint.name_table import Operation
from megatron_atesd.checkpoint.reading import model_state
from megatron_atesd.checkpoint.run_checkpoints import Saver
from megatron_atesd.checkpoint.tensor_parts import join
from megatron_atesd.config import CheckpointConfig
from megatron_atesd.errors import CheckpointError, ConfigError, ConversionError
from megatron_atesd.model.hf_config import read_architecture
from tests.support.convert_models import read_tensors, save_model
from tests.support.patience import PATIENCE

SCRIPTS = Path(__file__).resolve().parents[2] / "checkpoints_convert"


@pytest.fixture(autouse=True)
def _no_groups_left() -> Iterator[None]:
    """A refusal leaves the process groups to the end of the process; here the next test needs them."""
    yield
    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    """Change tensors of model.safetensors (dots as __); None removes one."""
    tensors = read_tensors(folder)
    for name, value in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if value is not None:
            tensors[name.replace("__", ".")] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refusal(source: Path, *options: str) -> str:
    """What hf_to_megatron says about `source`; it must leave no output behind."""
    out = source.parent / "out"
    with pytest.raises(ConversionError) as caught:
        hf_to_megatron.main(["--hf", str(source), "--out", str(out), *options])
    assert sorted(path.name for path in source.parent.iterdir()) == [source.name]
    return str(caught.value)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_model(tmp_path / "hf")


@pytest.mark.parametrize(
    "model",
    [
        GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11)),
        Qwen2ForCausalLM(Qwen2Config(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=8, vocab_size=11)),
    ],
)
def test_another_architecture(tmp_path: Path, model: Any):
    model.save_pretrained(tmp_path / "hf")
    assert f"model_type '{model.config.model_type}' is not supported" in refusal(tmp_path / "hf")


def test_a_truncated_file(source: Path):
    file = source / "model.safetensors"
    os.truncate(file, file.stat().st_size - 100)
    assert f"{file}: damaged or incomplete" in refusal(source)


def test_a_shard_that_the_index_names_but_is_missing(tmp_path: Path):
    source = save_model(tmp_path / "hf", shard_size="20KB")
    (lost := sorted(source.glob("*.safetensors"))[1]).unlink()
    assert f"{lost}: missing" in refusal(source)


def test_a_broken_index(source: Path):
    (source / "model.safetensors").rename(source / "model-00001.safetensors")
    (source / "model.safetensors.index.json").write_text('{"weight_map": [')
    assert "index.json: cannot be read as JSON" in refusal(source)


def test_pickled_weights_only(source: Path):
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    assert "pickled" in refusal(source)


def test_no_weights_at_all(source: Path):
    (source / "model.safetensors").unlink()
    assert "no weights here" in refusal(source)


def test_a_missing_tensor(source: Path):
    rewrite(source, model__layers__1__mlp__up_proj__weight=None)
    assert "tensor model.layers.1.mlp.up_proj.weight is missing" in refusal(source)


def test_an_unknown_tensor(source: Path):
    rewrite(source, model__layers__0__self_attn__q_proj__bias=torch.zeros(64))
    assert "tensor model.layers.0.self_attn.q_proj.bias is not part of a qwen3 model" in refusal(source)


def test_a_tensor_of_another_shape(source: Path):
    rewrite(source, model__norm__weight=torch.ones(31))
    assert "model.norm.weight has shape (31,), config.json asks for (32,)" in refusal(source)


def test_quantised_weights(source: Path):
    rewrite(source, model__norm__weight=torch.ones(32, dtype=torch.int8))
    assert "model.norm.weight is stored as I8" in refusal(source)


def test_a_redundant_head_that_differs_from_the_tied_embedding(source: Path):
    head = read_tensors(source)["model.embed_tokens.weight"].clone()
    head[7, 3] += 1
    rewrite(source, lm_head__weight=head)
    assert "lm_head.weight differs from model.embed_tokens.weight" in refusal(source)


def test_mixed_types_want_a_decision(source: Path):
    rewrite(source, model__norm__weight=torch.ones(32, dtype=torch.bfloat16))
    assert "weights are stored as bf16, fp32; choose --dtype" in refusal(source)


def test_an_equal_redundant_head_and_old_rotary_buffers_are_accepted(source: Path, tmp_path: Path):
    head = read_tensors(source)["model.embed_tokens.weight"].clone()
    rewrite(source, lm_head__weight=head, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(8))
    hf_to_megatron.main(["--hf", str(source), "--out", str(tmp_path / "megatron")])
    megatron_to_hf.main(["--megatron", str(tmp_path / "megatron"), "--out", str(tmp_path / "back")])
    assert torch.equal(read_tensors(tmp_path / "back")["model.embed_tokens.weight"], head)


@pytest.mark.parametrize("change", [0.5, float("nan")])
def test_verify_catches_one_weight_that_went_wrong(source: Path, change: float, monkeypatch: pytest.MonkeyPatch):
    def join_and_tamper(parts: Sequence[torch.Tensor], operation: Operation, groups: int) -> torch.Tensor:
        weight = join(parts, operation, groups).clone()
        if weight.shape == (32, 48):
            weight[3, 5] += change
        return weight

    monkeypatch.setattr(stream, "join", join_and_tamper)
    assert "verification failed: logits differ by up to" in refusal(source, "--verify")


def test_a_full_output_is_kept_unless_forced(source: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    arguments = ["--hf", str(source), "--out", str(tmp_path / "out")]
    with pytest.raises(ConversionError, match="is not empty"):
        hf_to_megatron.main(arguments)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"
    hf_to_megatron.main([*arguments, "--force"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["SHA256SUMS", "hf", "weights"]


@pytest.mark.parametrize("out", ["hf", "hf/megatron", "."])
def test_an_output_that_would_swallow_its_source(source: Path, out: str):
    with pytest.raises(ConversionError, match="lie in one another"):
        hf_to_megatron.main(["--hf", str(source), "--out", str(source.parent / out), "--force"])
    assert (source / "model.safetensors").is_file()


def test_several_processes(source: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="runs as one process"):
        hf_to_megatron.main(["--hf", str(source), "--out", str(source.parent / "out")])


def test_a_run_directory_means_its_newest_checkpoint(source: Path, tmp_path: Path):
    with single_process():
        model = whole_model(read_architecture(source), "fp32")
        load_hf_weights(model, source)
        checkpoints = Saver(tmp_path / "run" / "checkpoints", CheckpointConfig(keep=0), print)
        for update in (1, 2):
            with torch.no_grad():
                model.chunks[0].decoder.final_layernorm.weight.fill_(update)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue, reportCallIssue]
            checkpoints.save(update, {"model": model_state(model), "run": {"update": update}}, source, last=True)
    for argument, expected in (("run", 2.0), ("run/checkpoints/step_1", 1.0)):
        megatron_to_hf.main(["--megatron", str(tmp_path / argument), "--out", str(tmp_path / "back"), "--force"])
        assert set(read_tensors(tmp_path / "back")["model.norm.weight"].tolist()) == {expected}


def test_a_folder_that_is_no_model(tmp_path: Path):
    with pytest.raises(CheckpointError, match="neither a Megatron model folder"):
        megatron_to_hf.main(["--megatron", str(tmp_path), "--out", str(tmp_path / "back")])
    with pytest.raises(CheckpointError, match="neither a Hugging Face folder"):
        find_hf(tmp_path)


def test_damaged_megatron_weights(source: Path, tmp_path: Path):
    hf_to_megatron.main(["--hf", str(source), "--out", str(tmp_path / "megatron")])
    for file in (tmp_path / "megatron" / "weights").glob("*.distcp"):
        os.truncate(file, 500)
    with pytest.raises(CheckpointError, match="its checksum differs"):
        megatron_to_hf.main(["--megatron", str(tmp_path / "megatron"), "--out", str(tmp_path / "back")])
    assert not (tmp_path / "back").exists()


def test_load_model_weights_takes_both_kinds_of_folder(source: Path, tmp_path: Path):
    with single_process():
        hf_to_megatron.convert(source, tmp_path / "megatron")
        models = [whole_model(read_architecture(source), "fp32") for _ in range(2)]
        load_model_weights(models[0], source)
        load_model_weights(models[1], tmp_path / "megatron")
        assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


@pytest.mark.parametrize(("script", "option"), [("hf_to_megatron", "--hf"), ("megatron_to_hf", "--megatron")])
def test_a_refusal_is_one_line_and_exit_code_2_from_any_directory(tmp_path: Path, script: str, option: str):
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS.parent)}
    command = [sys.executable, str(SCRIPTS / f"{script}.py"), option, "nothing", "--out", "out"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 2
    assert len([line for line in result.stderr.splitlines() if line.startswith("error: nothing:")]) == 1
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []
