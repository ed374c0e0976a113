"""The model of Transformer Engine's layers against the name table: every recipe at its layout, in bf16 and each FP8 recipe, without a GPU.

Needs Transformer Engine, not a GPU: `make test-te`.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")  # its libraries are what Transformer Engine's are linked to
pytest.importorskip("transformer_engine.pytorch", reason="needs Transformer Engine: make test-te")

import torch
from torch.distributed.checkpoint import FileSystemReader  # pyright: ignore[reportPrivateImportUsage]
from transformers import Qwen3Config, Qwen3ForCausalLM

from megatron_atesd.checkpoint.layout import stored_shapes
from megatron_atesd.checkpoint.model_folder import load_model_weights
from megatron_atesd.checkpoint.name_table import Entry, name_table
from megatron_atesd.checkpoint.plain_values import COMMON_OBJECT
from megatron_atesd.config import ModelConfig, ParallelConfig, TrainConfig, load_config
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.chunk import padded_vocabulary
from megatron_atesd.model.gpt import build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.plan.dry_run import stage_ranks
from megatron_atesd.plan.published import QWEN3
from tests.support.no_gpu import build, history_there_and_back, in_a_process, load

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PRECISIONS = (None, "fp8_tensorwise", "fp8_delayed", "fp8_blockwise", "fp8_mxfp8")
RECIPE_TYPES = ["", "Float8CurrentScaling", "TEDelayedScaling", "Float8BlockScaling", "MXFP8BlockScaling"]
LAYERS = {"TELayerNormColumnParallelLinear", "TERowParallelLinear", "PackedTEAttention"}
WIDE = TrainConfig(model=ModelConfig("Qwen3-32B", "bf16"), parallel=ParallelConfig(tensor=8, pipeline=4, sequence=True))
TINY = Architecture("qwen3", 32, 48, 2, 2, 2, 16, 21, 64, 1e4, 1e-6, tied=False, qk_norm=True)


def recipe(name: str) -> TrainConfig:
    return load_config(["--config", str(EXAMPLES / f"{name}.yaml")])


NAMES = [(method, size) for method in ("atesd", "opsd") for size in ("1.7b", "4b", "8b")]
JOBS = {f"{method}_qwen3_{size}": (recipe(f"{method}_qwen3_{size}"), QWEN3[size], 8) for method, size in NAMES}
JOBS["Qwen3-32B at TP 8 × PP 4 × DP 16"] = (WIDE, QWEN3["32b"], 512)


def local_shape(entry: Entry, tensor: int) -> tuple[int, ...]:
    """Of the parameter on one of `tensor` ranks."""
    first, *rest = entry.shape
    if entry.operation == "copy":
        return entry.shape
    if entry.operation == "columns":
        return first, rest[0] // tensor
    return (padded_vocabulary(first, tensor) if entry.operation == "vocabulary" else first) // tensor, *rest


@pytest.mark.parametrize("job", JOBS)
def test_parameters_and_stored_tensors_are_the_name_tables(job: str) -> None:
    config, arch, world = JOBS[job]
    tensor, seen = config.parallel.tensor, dict[str, tuple[int, ...]]()
    table = {name: local_shape(entry, tensor) for entry in name_table(arch) for name in entry.megatron}
    stored = stored_shapes(arch)
    for rank in stage_ranks(config, world):
        for built, precision_type in zip(in_a_process(build, config, arch, world, rank, PRECISIONS), RECIPE_TYPES, strict=True):
            assert built.parameters == {name: table[name] for name in built.parameters}
            assert built.stored == {name: stored[name] for name in built.stored}
            assert built.layers >= LAYERS
            assert built.recipe == precision_type
            seen |= built.stored
    assert seen == stored


def test_a_converted_folder_has_the_models_keys_and_fills_it(tmp_path: Path) -> None:
    sizes = {"vocab_size": 21, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": False}
    torch.manual_seed(1)
    Qwen3ForCausalLM(Qwen3Config(**sizes, **heads)).bfloat16().save_pretrained(tmp_path / "hf")
    converter = [sys.executable, "checkpoints_convert/hf_to_megatron.py", "--hf", tmp_path / "hf", "--out", tmp_path / "model"]
    subprocess.run(converter, cwd=EXAMPLES.parent, check=True)
    arch = read_architecture(tmp_path / "hf")
    keys = FileSystemReader(tmp_path / "model" / "weights").read_metadata().state_dict_metadata
    assert {key for key in keys if "_extra_state" not in key} == {f"model.{key}" for key in stored_shapes(arch)} | {COMMON_OBJECT}
    with parallel_session():
        model = build_model(arch, transformer_config(arch, 1, 1, False, "bf16"))
        load_model_weights(model, tmp_path / "hf")
        mine = {name: parameter.detach().float().tolist() for name, parameter in model.named_parameters()}
    spelling = {entry.megatron[0]: entry.stored for entry in name_table(arch)}
    for precision in (None, "fp8_delayed"):
        assert in_a_process(load, tmp_path / "model", arch, precision) == {spelling[name]: values for name, values in mine.items()}


def test_the_delayed_recipes_history_goes_from_model_to_model() -> None:
    saved, taken_over = in_a_process(history_there_and_back, TINY)
    assert len(saved) == 4 * TINY.layers
    first = saved["decoder.layers.0.self_attention.linear_proj"]
    assert (len(first["scale_fwd"]), len(first["scale_bwd"])) == (3, 2)
    assert taken_over == saved
