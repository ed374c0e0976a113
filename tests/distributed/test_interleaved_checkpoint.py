"""A checkpoint of weights and optimizer is one and the same, whether interleaved stages or one process wrote it or read it."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from transformers import Qwen3Config, Qwen3ForCausalLM

from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.checkpoint.reading import model_state, read_folder, write_folder
from megatron_atesd.config import ScheduleConfig
from megatron_atesd.model.gpt import HiddenStateGPT, build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.train.optimizer import Optimization, build_optimization
from megatron_atesd.train.sft import SftExample, sft_step
from tests.support.launch import run_distributed

ALONE, INTERLEAVED = (1, 1), (2, 2)  # PP, VP
EXAMPLES = [SftExample((1, 2, 3)[: 1 + i % 3], range(4, 6 + 2 * i), [1] * (2 + 2 * i)) for i in range(4)]


def build(folder: Path, pipeline: int, virtual: int) -> tuple[HiddenStateGPT, Optimization]:
    architecture = read_architecture(folder / "hf")
    model = build_model(architecture, transformer_config(architecture, 1, pipeline, False, "fp32", virtual_pipeline=virtual))
    return model, build_optimization(model, {"lr": 1e-3}, {}, ScheduleConfig(), 10)


def state(model: HiddenStateGPT, optimization: Optimization, loading: bool = False) -> dict[str, Any]:
    weights = model_state(model)
    return {"model": weights, "optimizer": optimization.optimizer.sharded_state_dict(weights, is_loading=loading)}


def train(folder: Path, name: str, pipeline: int, virtual: int) -> tuple[Tensor | None, Tensor | None]:
    """Two updates, saved as `name`; returns this rank's embedding and vocabulary projection."""
    with parallel_session(1, pipeline, virtual_pipeline=virtual):
        model, optimization = build(folder, pipeline, virtual)
        load_hf_weights(model, folder / "hf")
        optimization.optimizer.reload_model_params()
        for _ in range(2):
            sft_step(optimization, model, EXAMPLES, micro_batch_tokens=1)
        write_folder(folder / name, state(model, optimization), folder / "hf")
        embedding = dict(model.named_parameters())["embedding.word_embeddings.weight"].data if model.pre_process else None
        return embedding, model.head_weight().data if model.post_process else None


def copy(folder: Path, source: str, name: str, pipeline: int, virtual: int) -> None:
    """Load `source` into another model and optimizer, and save these as `name`."""
    with parallel_session(1, pipeline, seed=9, virtual_pipeline=virtual):
        model, optimization = build(folder, pipeline, virtual)
        loaded = read_folder(folder / source, state(model, optimization, loading=True))
        model.load_state_dict({key.removeprefix("model."): value for key, value in loaded["model"].items()})
        optimization.optimizer.load_state_dict(loaded["optimizer"])
        write_folder(folder / name, state(model, optimization), folder / "hf")


def train_and_copy_interleaved(folder: Path) -> tuple[Tensor | None, Tensor | None]:
    dist.init_process_group("gloo")
    ends = train(folder, "interleaved", *INTERLEAVED)
    copy(folder, "alone", "alone-interleaved", *INTERLEAVED)
    return ends


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, Tensor]], list[Any]]:
    """The tensors of each checkpoint, and both ranks' embedding and vocabulary projection at PP=2 × VP=2."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=21, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
            head_dim=16, max_position_embeddings=64, tie_word_embeddings=True,
        )
    ).save_pretrained(folder / "hf")  # fmt: skip
    train(folder, "alone", *ALONE)
    ends = run_distributed(train_and_copy_interleaved, 2, folder)
    copy(folder, "interleaved", "interleaved-alone", *ALONE)
    names = ("alone", "alone-interleaved", "interleaved", "interleaved-alone")
    return {name: tensors(folder / name, folder / "all.pt") for name in names}, ends


def tensors(checkpoint: Path, scratch: Path) -> dict[str, Tensor]:
    dcp_to_torch_save(checkpoint / "weights", scratch)
    return {name: value for name, value in torch.load(scratch, weights_only=True).items() if isinstance(value, Tensor)}


@pytest.mark.parametrize(("source", "copied"), [("alone", "alone-interleaved"), ("interleaved", "interleaved-alone")])
def test_a_checkpoint_loads_bit_for_bit_at_the_other_layout(written: Any, source: str, copied: str) -> None:
    one, other = written[0][source], written[0][copied]
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_both_layouts_train_alike(written: Any) -> None:
    """Adam's moments too: they belong to the same layers."""
    one, other = written[0]["alone"], written[0]["interleaved"]
    assert one.keys() == other.keys()
    assert {name.split(".")[0] for name in one} == {"model", "optimizer"}
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-5 * float(tensor.abs().max()), msg=lambda m, n=name: f"{n}: {m}")


def test_tied_ends_stay_equal(written: Any) -> None:
    """The first rank's first chunk has the embedding, the last rank's last chunk a copy of it as vocabulary projection."""
    (embedding, _), (_, head) = written[1]
    assert torch.equal(embedding, head)
