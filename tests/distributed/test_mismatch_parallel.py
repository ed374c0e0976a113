"""The mismatch at several exposures equals one plain step an exposure, and plain PyTorch, and is the same at every layout."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import Qwen3ForCausalLM

from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.distill import mismatch
from megatron_atesd.distill.divergence import Divergence
from megatron_atesd.distill.mismatch import STATISTICS, mismatch_sums
from megatron_atesd.distill.readings import Example
from megatron_atesd.distill.step import measure_step
from megatron_atesd.distill.teacher import Teacher
from megatron_atesd.model.gpt import build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.parallel.groups import data_parallel_place
from megatron_atesd.parallel.session import parallel_session
from tests.support.distill_case import examples, save_models
from tests.support.launch import run_distributed

# Another kind than the KL, and clipped: neither may reach what is measured.
SETTINGS = Divergence("jsd", clip=0.1, clip_mode="token", temperature=1.3, chunk=5)
PAIRS = [(e.student_prompt, e.response) for e in examples(37)]
PROMPTS = [[e.teacher_prompt[:1], e.teacher_prompt, e.teacher_prompt, [*e.teacher_prompt, 3, 1, 4]] for e in examples(37)]


@dataclass(frozen=True)
class Layout:
    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1
    sequence: bool = False
    context: int = 1
    packed: bool = False


def sums_at(folder: Path, layout: Layout, kind: Any = "initial") -> dict[str, Any]:
    """The sums [N, A, 4], the same of each exposure alone, the means of a plain step an exposure, and how many rows the teacher read."""
    with parallel_session(layout.tensor, layout.pipeline, virtual_pipeline=layout.virtual, context=layout.context):
        architecture = read_architecture(folder / "student")
        sizes = (layout.tensor, layout.pipeline, layout.sequence)
        config = transformer_config(architecture, *sizes, "fp32", virtual_pipeline=layout.virtual, context=layout.context)
        model = build_model(architecture, config, layout.packed)
        load_hf_weights(model, folder / "teacher")
        teacher = Teacher(model, kind)
        load_hf_weights(model, folder / "student")
        rows = []
        with pytest.MonkeyPatch.context() as patch:
            made = mismatch.model_batches
            patch.setattr(mismatch, "model_batches", lambda model, pairs, tokens: rows.append(len(pairs)) or made(model, pairs, tokens))
            together = mismatch_sums(model, teacher, PAIRS, PROMPTS, SETTINGS, 30)
        rank, size = data_parallel_place()
        alone = [mismatch_sums(model, teacher, PAIRS, [[of[i]] for of in PROMPTS], SETTINGS, 30)[:, 0] for i in range(4)]
        steps = []
        for i in range(4):
            of = [Example(prompt, seen[i], response) for (prompt, response), seen in zip(PAIRS, PROMPTS, strict=True)]
            result = measure_step(model, teacher, of[rank::size], SETTINGS, 30)
            steps.append([getattr(result, name) for name in STATISTICS])
        return {"sums": together, "alone": torch.stack(alone, dim=1), "steps": torch.tensor(steps, dtype=torch.float64), "rows": rows}


def plain(folder: Path, judge: str = "teacher") -> torch.Tensor:
    """As anyone would write it, in fp64."""
    student, teacher = (Qwen3ForCausalLM.from_pretrained(folder / role).double().eval() for role in ("student", judge))

    @torch.no_grad()
    def log_probs(model: Any, prompt: Sequence[int], response: Sequence[int]) -> torch.Tensor:
        logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        return torch.log_softmax(logits / SETTINGS.temperature, dim=-1)

    found = torch.zeros(len(PAIRS), 4, len(STATISTICS), dtype=torch.float64)
    for n, (prompt, response) in enumerate(PAIRS):
        for a, seen in enumerate(PROMPTS[n] if response else ()):
            q_TV, p_TV = log_probs(student, prompt, response), log_probs(teacher, seen, response)
            kl = (p_TV.exp() * (p_TV - q_TV)).sum()
            differ = (p_TV.argmax(-1) != q_TV.argmax(-1)).sum()
            found[n, a] = torch.stack([kl, differ.double(), q_TV.exp().amax(-1).sum(), -(p_TV.exp() * p_TV).sum()])
    return found


LAYOUTS = [
    Layout(),
    Layout(tensor=2),
    Layout(tensor=2, sequence=True),
    Layout(pipeline=2),
    Layout(pipeline=2, virtual=2),
    Layout(context=2),
    Layout(packed=True),
]


def on_one(folder: Path) -> dict[str, Any]:
    dist.init_process_group("gloo")
    return {"fp32": sums_at(folder, Layout()), "live": sums_at(folder, Layout(), "live")}


def on_two(folder: Path) -> list[dict[str, Any]]:
    dist.init_process_group("gloo")
    return [sums_at(folder, layout) for layout in LAYOUTS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mismatch")
    save_models(folder, "qwen3", tied=True)
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Any]:
    return run_distributed(on_one, 1, folder)[0]


@pytest.fixture(scope="module")
def shared(folder: Path) -> list[Any]:
    return run_distributed(on_two, 2, folder)


def test_the_sums_are_those_of_plain_pytorch(folder: Path, alone: dict[str, Any]) -> None:
    torch.testing.assert_close(alone["fp32"]["sums"], plain(folder), rtol=1e-4, atol=1e-5)


def test_a_live_teacher_has_the_students_weights(folder: Path, alone: dict[str, Any]) -> None:
    torch.testing.assert_close(alone["live"]["sums"], plain(folder, judge="student"), rtol=1e-4, atol=1e-5)


def test_their_means_are_what_a_step_of_each_exposure_says(alone: dict[str, Any]) -> None:
    tokens = sum(len(response) for _, response in PAIRS)
    torch.testing.assert_close(alone["fp32"]["sums"].sum(dim=0) / tokens, alone["fp32"]["steps"], rtol=1e-5, atol=1e-6)


def test_equal_prompts_are_read_once_and_count_as_often_as_they_are_there(alone: dict[str, Any]) -> None:
    assert alone["fp32"]["rows"] == [3 * len(PAIRS)]
    sums = alone["fp32"]["sums"]
    assert torch.equal(sums[:, 1], sums[:, 2])
    torch.testing.assert_close(sums, alone["fp32"]["alone"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_layout_gives_the_same_sums_on_every_rank(alone: dict[str, Any], shared: list[Any], layout: Layout) -> None:
    of_rank = [rank[LAYOUTS.index(layout)]["sums"] for rank in shared]
    assert torch.equal(*of_rank)
    torch.testing.assert_close(of_rank[0], alone["fp32"]["sums"], rtol=1e-4, atol=1e-5)
