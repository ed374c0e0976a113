"""Scores of exposures equal the inner product of two gradients by autograd, and are the same at every layout and with both optimizers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import Qwen3ForCausalLM

from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.config import ScheduleConfig
from megatron_atesd.distill.alignment import add_progress_gradient, alignment_scores
from megatron_atesd.distill.divergence import Divergence, divergence
from megatron_atesd.distill.likelihood import ScoredText
from megatron_atesd.distill.readings import Example, teacher_passes
from megatron_atesd.distill.step import Normalize, distill_step
from megatron_atesd.distill.target import TEACHER, Target
from megatron_atesd.distill.teacher import Teacher
from megatron_atesd.model.gpt import build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.parallel.groups import data_parallel_place
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.train.optimizer import build_optimization
from megatron_atesd.train.trial_step import DAMPING, trial_step
from tests.support.distill_case import examples, save_models
from tests.support.launch import run_distributed
from tests.support.student_session import Kind

BOUNDED = Divergence("forward_kl", clip=0.3, clip_mode="token", temperature=1.1, chunk=5)
RMS = 1e-6


@dataclass(frozen=True)
class Layout:
    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1
    sequence: bool = False
    context: int = 1
    packed: bool = False
    distributed: bool = False
    overlap: bool = False

    @property
    def model_ranks(self) -> int:
        return self.tensor * self.pipeline * self.context


def exposures() -> list[list[Example]]:
    """The same responses under three teacher prompts, and one that a mixed target has besides."""
    base = [replace(e, second_prompt=(*e.student_prompt, 2, 7)) for e in examples(37)]
    return [base, [replace(e, teacher_prompt=e.teacher_prompt[:2]) for e in base],
            [replace(e, teacher_prompt=(*e.teacher_prompt, 3, 1, 4)) for e in base]]  # fmt: skip


def texts() -> list[ScoredText]:
    return [ScoredText((5, 6, 7), (8, 9, 10, 2), 0.125), ScoredText((4,), (30, 2), 0.125), ScoredText((9, 8), (7, 7, 7), -0.05)]


def scores_at(
    folder: Path,
    layout: Layout,
    updates: int,
    dtype: str = "fp32",
    rms: float = RMS,
    kind: Kind = "initial",
    normalize: Normalize = "token",
    count: int = 3,
    target: Target = TEACHER,
) -> list[float] | None:
    """After `updates` updates on the first exposure."""
    bounded = replace(BOUNDED, target=target)
    with parallel_session(layout.tensor, layout.pipeline, virtual_pipeline=layout.virtual, context=layout.context):
        architecture = read_architecture(folder / "student")
        sizes = (layout.tensor, layout.pipeline, layout.sequence)
        config = transformer_config(architecture, *sizes, "fp32", virtual_pipeline=layout.virtual, context=layout.context)
        model = build_model(architecture, config, layout.packed)
        if dtype == "fp64":
            config.params_dtype = torch.float64
            model.double()
        load_hf_weights(model, folder / "teacher")
        teacher = Teacher(model, kind)
        load_hf_weights(model, folder / "student")
        settings = {"lr": 1e-3, "clip_grad": 1.0, "use_distributed_optimizer": layout.distributed}
        optimization = build_optimization(
            model,
            settings,
            {"grad_reduce_in_fp32": dtype == "fp32", "overlap_grad_reduce": layout.overlap, "overlap_param_gather": layout.overlap},
            ScheduleConfig(),
            10,
        )
        rank, size = data_parallel_place()
        mine = [of[rank::size] for of in exposures()]
        for _ in range(updates):
            optimization.zero_grad()
            distill_step(optimization.wrapped, model, teacher, mine[0], bounded, micro_batch_tokens=1)
            optimization.step()
        optimization.zero_grad()
        add_progress_gradient(optimization.wrapped, model, texts()[:count], 1)
        seen = teacher_passes(model, teacher, mine, 1, target)
        rollouts = [(e.student_prompt, e.response) for e in mine[0]]
        return alignment_scores(model, teacher, rollouts, seen, bounded, 1, normalize, lambda: trial_step(optimization, rms))


def inner_products(folder: Path, judge: str = "teacher", normalize: Normalize = "token", target: Target = TEACHER) -> list[float]:
    """As anyone would write it, in fp64: gradients of the progress loss and of each exposure's loss, before Adam has moments."""
    student, teacher = (Qwen3ForCausalLM.from_pretrained(folder / role).double().eval() for role in ("student", judge))

    def log_probs(model: Any, prompt: Sequence[int], response: Sequence[int], temperature: float) -> torch.Tensor:
        logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        return torch.log_softmax(logits / temperature, dim=-1)

    picked = [log_probs(student, t.prompt, t.response, 1.0).gather(1, torch.tensor(t.response)[:, None]).sum() for t in texts()]
    progress = -torch.stack([t.weight * total for t, total in zip(texts(), picked, strict=True)]).sum()
    direction = preconditioned(torch.autograd.grad(progress, list(student.parameters())))
    found = []
    for of in exposures():
        losses = []
        for e in (e for e in of if e.response):
            with torch.no_grad():
                p_TV = log_probs(teacher, e.teacher_prompt, e.response, BOUNDED.temperature)
                second_TV = log_probs(teacher, e.second_prompt, e.response, BOUNDED.temperature)
                if target.kind == "mix_exposures":
                    p_TV = ((1 - target.weight) * p_TV.exp() + target.weight * second_TV.exp()).log()
                elif target.kind == "mix_unaided":
                    p_TV = torch.log_softmax((1 - target.weight) * p_TV + target.weight * second_TV, dim=-1)
            d_T = divergence(p_TV, log_probs(student, e.student_prompt, e.response, BOUNDED.temperature), "forward_kl")
            losses.append(d_T * (BOUNDED.clip / d_T.detach()).clamp(max=1))
        loss = torch.cat(losses).mean() if normalize == "token" else torch.stack([of_response.mean() for of_response in losses]).mean()
        gradient = torch.autograd.grad(loss, list(student.parameters()))
        found.append(float(torch.stack([(d * g).sum() for d, g in zip(direction, gradient, strict=True)]).sum()))
    return found


def preconditioned(gradients: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    flat = torch.cat([g.flatten() for g in gradients])
    flat = flat / (flat.abs() + DAMPING * root_mean_square(flat))
    steps = flat * RMS / root_mean_square(flat)
    return [step.view_as(g) for step, g in zip(steps.split([g.numel() for g in gradients]), gradients, strict=True)]


def root_mean_square(flat: torch.Tensor) -> torch.Tensor:
    return flat[flat != 0].square().mean().sqrt()


LAYOUTS = [
    Layout(tensor=2),
    Layout(tensor=2, sequence=True),
    Layout(pipeline=2),
    Layout(pipeline=2, virtual=2),
    Layout(context=2),
    Layout(packed=True),
    Layout(distributed=True),
    Layout(distributed=True, overlap=True),
    Layout(tensor=2, distributed=True),
]
MIXES = [Target("mix_exposures", 0.3), Target("mix_unaided", -0.5)]
LARGER = 1e-2  # in fp32 a fall of the loss must stand above the resolution of the loss
# Of a score: it is a small difference of two losses, so that their rounding is a large part of it. Processors round differently.
ROUNDING = 5e-5


def on_one(folder: Path) -> dict[str, Any]:
    dist.init_process_group("gloo")
    return {
        "fp64": scores_at(folder, Layout(), 0, "fp64"),
        "again": scores_at(folder, Layout(), 0, "fp64"),
        "live": scores_at(folder, Layout(), 0, "fp64", kind="live"),
        "sequence": scores_at(folder, Layout(), 0, "fp64", normalize="sequence"),
        "one text": scores_at(folder, Layout(), 0, rms=LARGER, count=1),
        **{target.kind: scores_at(folder, Layout(), 0, "fp64", target=target) for target in MIXES},
        **{str(n): scores_at(folder, Layout(), n, rms=LARGER) for n in (0, 2)},
    }


def on_two(folder: Path) -> list[list[Any]]:
    dist.init_process_group("gloo")
    one_text = [scores_at(folder, Layout(), 0, rms=LARGER, count=1)]  # the second data rank has none
    return [*([scores_at(folder, layout, n, rms=LARGER) for n in (0, 2)] for layout in LAYOUTS), one_text]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alignment")
    save_models(folder, "qwen3", tied=True)
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Any]:
    return run_distributed(on_one, 1, folder)[0]


@pytest.fixture(scope="module")
def shared(folder: Path) -> list[Any]:
    return run_distributed(on_two, 2, folder)


def test_a_score_is_the_inner_product_of_both_gradients(folder: Path, alone: dict[str, Any]) -> None:
    assert alone["fp64"] == pytest.approx(inner_products(folder), rel=1e-3)


@pytest.mark.parametrize("target", MIXES, ids=str)
def test_exposures_are_scored_by_the_target_that_is_trained_on(folder: Path, alone: dict[str, Any], target: Target) -> None:
    assert alone[target.kind] == pytest.approx(inner_products(folder, target=target), rel=1e-3)


def test_a_live_teacher_stays_where_it_was(folder: Path, alone: dict[str, Any]) -> None:
    assert alone["live"] == pytest.approx(inner_products(folder, judge="student"), rel=1e-3)


def test_the_loss_is_normalised_as_in_training(folder: Path, alone: dict[str, Any]) -> None:
    assert alone["sequence"] == pytest.approx(inner_products(folder, normalize="sequence"), rel=1e-3)


def test_scoring_leaves_nothing_behind(alone: dict[str, Any]) -> None:
    assert alone["fp64"] == alone["again"]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_layout_gives_the_same_scores(alone: dict[str, Any], shared: list[Any], layout: Layout) -> None:
    for updates, scores in zip(("0", "2"), shared[0][LAYOUTS.index(layout)], strict=True):
        largest = max(map(abs, alone[updates]))
        assert scores == pytest.approx(alone[updates], abs=ROUNDING * largest, rel=0)


def test_a_data_rank_without_a_text_takes_part(alone: dict[str, Any], shared: list[Any]) -> None:
    assert shared[0][-1][0] == pytest.approx(alone["one text"], abs=ROUNDING * max(map(abs, alone["one text"])), rel=0)


def test_ranks_have_the_same_scores(shared: list[Any]) -> None:
    assert shared[0] == shared[1]
