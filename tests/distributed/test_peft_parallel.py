"""A folder that peft wrote loads at every TP × PP with peft's logits; a checkpoint saved there exports to the same bits again."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from checkpoints_convert import megatron_to_hf
from checkpoints_convert.command import single_process
from megatron_atesd.checkpoint.base_model import AdapterRecord, base_model
from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.checkpoint.peft_folder import load_peft
from megatron_atesd.checkpoint.reading import write_folder
from megatron_atesd.model.gpt import HiddenStateGPT, build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.lora import LoraSettings, add_adapters
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.model.micro_batches import micro_batches
from megatron_atesd.model.schedule import run_schedule
from megatron_atesd.model.trained import trained_prefix, trained_state
from megatron_atesd.model.vocabulary import whole_logits
from megatron_atesd.parallel.session import parallel_session
from tests.support.adapter_folders import logits_of, save_peft
from tests.support.convert_models import save_model
from tests.support.launch import run_distributed
from tests.support.lora_case import IDS_BS, assert_same

LAYOUTS = [(1, 1), (2, 1), (1, 2)]  # TP × PP; data parallelism takes the rest of two processes
SOME = ("k_proj", "o_proj", "up_proj", "down_proj")
KINDS: dict[str, tuple[dict[str, Any], LoraSettings]] = {
    "qwen3, tied, all": ({}, LoraSettings(rank=4, alpha=6.0)),
    "llama, untied, some": (
        {"family": "llama", "tie_word_embeddings": False},
        LoraSettings(rank=8, alpha=6.0, targets=SOME, rslora=True),
    ),
}
IDS = IDS_BS[0].tolist()


def visit_layouts(folder: Path) -> dict[str, Tensor | None]:
    """On each rank: the logits at every layout, of adapters loaded there from the PEFT folder; each is also saved as a checkpoint."""
    dist.init_process_group("gloo")
    seen: dict[str, Tensor | None] = {}
    for kind, (_, settings) in KINDS.items():
        base = folder / kind / "hf"
        for tensor, pipeline in LAYOUTS:
            with parallel_session(tensor, pipeline), torch.no_grad():
                arch = read_architecture(base)
                model = build_model(arch, transformer_config(arch, tensor, pipeline, False, "fp32"))
                load_hf_weights(model, base)
                add_adapters(model, settings)
                load_peft(model, folder / kind / "peft")
                seen[f"{kind} {tensor}x{pipeline}"] = logits(model)
                record = AdapterRecord(settings, base_model(base)).state()
                state = {"model": trained_state(model, trained_prefix(model)), **record}
                write_folder(folder / kind / f"saved_{tensor}x{pipeline}", state, base)
    dist.destroy_process_group()
    return seen


def logits(model: HiddenStateGPT) -> Tensor | None:
    """[S, V] on the last stage, None before it."""
    result: list[Any] = run_schedule(
        model,
        micro_batches([(IDS, [0])], 1),
        lambda _, hidden_BSH: (hidden_BSH.sum(), torch.tensor(1, dtype=torch.int), whole_logits(model, hidden_BSH[0, : len(IDS)])),
        forward_only=True,
    )
    return result[0] if result else None


@pytest.fixture(scope="module")
def visited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Tensor | None]], dict[str, Tensor]]:
    """The folders, what each rank saw, and peft's logits [S, V] of every kind."""
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("adapters")
    theirs = {}
    for kind, (model, settings) in KINDS.items():
        theirs[kind] = logits_of(save_peft(folder / kind / "peft", save_model(folder / kind / "hf", **model), settings))[0]
    return folder, run_distributed(visit_layouts, 2, folder), theirs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_logits_are_those_of_peft(
    visited: tuple[Path, list[dict[str, Any]], dict[str, Tensor]], kind: str, layout: tuple[int, int]
) -> None:
    seen = [rank[f"{kind} {layout[0]}x{layout[1]}"] for rank in visited[1]]
    last_stages = [found for found in seen if found is not None]
    assert len(last_stages) == 2 // layout[1]
    for found in last_stages:
        assert_same({"logits": found}, {"logits": visited[2][kind]})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_what_was_saved_in_parallel_exports_to_the_bits_that_peft_wrote(
    visited: tuple[Path, list[dict[str, Any]], dict[str, Tensor]], tmp_path: Path, kind: str, layout: tuple[int, int]
) -> None:
    folder = visited[0] / kind
    with single_process():
        megatron_to_hf.convert(folder / f"saved_{layout[0]}x{layout[1]}", tmp_path / "out")
    ours, theirs = (load_file(parent / "adapter_model.safetensors") for parent in (tmp_path / "out", folder / "peft"))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
