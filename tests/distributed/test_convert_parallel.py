"""Loading at any tensor- and pipeline-parallel size gives one and the same model, from either kind of folder."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from checkpoints_convert import hf_to_megatron, megatron_to_hf
from checkpoints_convert.command import single_process
from megatron_atesd.checkpoint.model_folder import find_hf, load_model_weights
from megatron_atesd.checkpoint.reading import model_state, write_folder
from megatron_atesd.model.gpt import HiddenStateGPT, build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.model.micro_batches import micro_batches
from megatron_atesd.model.schedule import run_schedule
from megatron_atesd.model.vocabulary import whole_logits
from megatron_atesd.parallel.session import parallel_session
from tests.support.launch import run_distributed

LAYOUTS = [(2, 1), (1, 2), (2, 2)]  # TP × PP; data parallelism takes the rest of four processes
RELOADED = [(1, 1), (4, 1), (1, 2)]  # of what was saved at 2 × 2
IDS = [3, 14, 15, 9, 2, 6, 53, 58]
KINDS = ["qwen3 tied", "llama untied"]


def save_model(folder: Path, kind: str) -> Path:
    """A vocabulary of 61 needs padding at TP=2 and more of it at TP=4; four layers divide over two stages."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "tie_word_embeddings": kind.endswith(" tied"),
    }
    model: Any = Qwen3ForCausalLM(Qwen3Config(**sizes)) if kind.startswith("qwen3") else LlamaForCausalLM(LlamaConfig(**sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.dim() == 1))
    model.save_pretrained(folder)
    return folder


def load(folder: Path, tensor: int, pipeline: int) -> HiddenStateGPT:
    arch = read_architecture(find_hf(folder))
    model = build_model(arch, transformer_config(arch, tensor, pipeline, False, "fp32"))
    load_model_weights(model, folder)
    return model


def logits(model: HiddenStateGPT) -> Tensor | None:
    """[S, V] on the last stage, None before it."""
    result: list[Any] = run_schedule(
        model,
        micro_batches([(IDS, [0])], 1),
        lambda _, hidden_BSH: (
            hidden_BSH.sum(),
            torch.tensor(1, dtype=torch.int),
            whole_logits(model, hidden_BSH[0, : len(IDS)]),
        ),
        forward_only=True,
    )
    return result[0] if result else None


def padding(model: HiddenStateGPT) -> float:
    """Sum of the absolute padding rows in the vocabulary weights of this rank (only the last TP rank has any)."""
    rank, size = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_tensor_model_parallel_world_size()
    valid = max(0, model.arch.vocabulary - rank * (model.vocab_size // size))
    names = ("embedding.word_embeddings.weight", "output_layer.weight")
    return sum(float(parameter[valid:].abs().sum()) for name, parameter in model.named_parameters() if name in names)


def visit_layouts(folder: Path) -> dict[str, Any]:
    """On each rank: logits at every layout, loaded from the Hugging Face and the Megatron folder; the latter also saved again."""
    dist.init_process_group("gloo")  # one rendezvous for all layouts
    seen: dict[str, Any] = {}
    for kind in KINDS:
        for tensor, pipeline in LAYOUTS:
            with parallel_session(tensor, pipeline), torch.no_grad():
                for source in ("hf", "megatron"):
                    model = load(folder / kind / source, tensor, pipeline)
                    seen[f"{kind} {tensor}x{pipeline} {source}"] = logits(model)
                    seen[f"{kind} {tensor}x{pipeline} {source} padding"] = padding(model)
                write_folder(folder / kind / f"saved_{tensor}x{pipeline}", model_state(model), folder / kind / "hf")
        for tensor, pipeline in RELOADED:
            with parallel_session(tensor, pipeline), torch.no_grad():
                seen[f"{kind} {tensor}x{pipeline} reloaded"] = logits(load(folder / kind / "saved_2x2", tensor, pipeline))
    dist.destroy_process_group()
    return seen


@pytest.fixture(scope="module")
def visited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("models")
    with single_process():
        for kind in KINDS:
            hf_to_megatron.convert(save_model(folder / kind / "hf", kind), folder / kind / "megatron")
    return folder, run_distributed(visit_layouts, 4, folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ["hf", "megatron"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_logits_are_those_of_transformers(visited: tuple[Path, list[dict[str, Any]]], kind: str, source: str, layout: tuple[int, int]):
    folder, ranks = visited
    last_stages = measured(ranks, kind, layout, source)
    assert len(last_stages) == 4 // layout[1]
    assert difference(last_stages, folder / kind / "hf") <= 1e-5


def measured(ranks: list[dict[str, Any]], kind: str, layout: tuple[int, int], source: str) -> list[Tensor]:
    """The logits of every last stage."""
    values = [rank[f"{kind} {layout[0]}x{layout[1]} {source}"] for rank in ranks]
    return [value for value in values if value is not None]


def difference(logits: list[Tensor], folder: Path) -> float:
    """Largest, to those of transformers."""
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([IDS])).logits[0]
    return max(float((value - expected).abs().max()) for value in logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", RELOADED, ids=str)
def test_saved_at_two_by_two_and_loaded_at_another_layout(visited: tuple[Path, list[dict[str, Any]]], kind: str, layout: tuple[int, int]):
    folder, ranks = visited
    assert difference(measured(ranks, kind, layout, "reloaded"), folder / kind / "hf") <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_undivided_layers_give_the_same_bits_in_one_stage_and_in_two(visited: tuple[Path, list[dict[str, Any]]], kind: str):
    one, two = (measured(visited[1], kind, layout, "reloaded")[0] for layout in ((1, 1), (1, 2)))
    assert torch.equal(one, two)


@pytest.mark.parametrize("source", ["hf", "megatron"])
def test_padding_rows_are_zero(visited: tuple[Path, list[dict[str, Any]]], source: str):
    sums = [value for rank in visited[1] for name, value in rank.items() if name.endswith(f"{source} padding")]
    assert len(sums) == 4 * len(KINDS) * len(LAYOUTS)
    assert set(sums) == {0.0}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_model_saved_in_parallel_exports_bit_by_bit(
    visited: tuple[Path, list[dict[str, Any]]], tmp_path: Path, kind: str, layout: tuple[int, int]
):
    folder = visited[0] / kind
    with single_process():
        megatron_to_hf.convert(folder / f"saved_{layout[0]}x{layout[1]}", tmp_path / "back")
    ours, theirs = load_file(tmp_path / "back" / "model.safetensors"), load_file(folder / "hf" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
