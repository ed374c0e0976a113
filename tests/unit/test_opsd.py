"""Exposure 1 is plain OPSD: loss and gradient equal the formula of OPSD v3, written here with transformers alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from examples.quickstart.tokenizer import PROMPT, build_tokenizer
from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.config import ScheduleConfig
from megatron_atesd.data.prompts import PromptRenderer
from megatron_atesd.data.sources.chain import chain_splits
from megatron_atesd.distill.divergence import Divergence
from megatron_atesd.distill.readings import Example
from megatron_atesd.distill.step import distill_step
from megatron_atesd.distill.teacher import Teacher
from megatron_atesd.model.gpt import build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.records import Problem
from megatron_atesd.train.optimizer import build_optimization
from tests.support.hf_reference import by_hf_name

CLIP, TEMPERATURE = 0.05, 1.1
RENDERER = PromptRenderer(build_tokenizer(), PROMPT, "floor")
PROBLEMS = chain_splits({"train": 5}, seed=3)["train"]
COMPARED = ("model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight", "model.embed_tokens.weight")


@dataclass(frozen=True)
class Measured:
    loss: float
    gradients: dict[str, torch.Tensor]


def responses() -> list[tuple[int, ...]]:
    """What a student might say: as many as there are problems, of different lengths."""
    draw = torch.Generator().manual_seed(5)
    lengths = (1, 4, 9, 2, 6)
    return [tuple(torch.randint(len(build_tokenizer()), (length,), generator=draw).tolist()) for length in lengths]


def save_models(folder: Path) -> None:
    """Student and teacher, with predictions sharp enough that the clip cuts."""
    for seed, role in enumerate(("student", "teacher")):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=len(build_tokenizer()), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, head_dim=16, tie_word_embeddings=True, max_position_embeddings=256,
            )
        )  # fmt: skip
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder / role)


def opsd_loss(student: Qwen3ForCausalLM, teacher: Qwen3ForCausalLM, clip: float) -> torch.Tensor:
    """OPSD v3: Σ_v min(p_T · (log p_T − log p_S), clip) for every response token, mean over the batch's tokens."""
    terms = []
    for problem, response in zip(PROBLEMS, responses(), strict=True):

        def log_p(model: Qwen3ForCausalLM, prompt: Sequence[int], response: Sequence[int] = response) -> torch.Tensor:
            logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
            return torch.log_softmax(logits[len(prompt) - 1 : len(prompt) - 1 + len(response)] / TEMPERATURE, dim=-1)

        with torch.no_grad():
            log_teacher = log_p(teacher, RENDERER.teacher(problem, 1.0).prompt_ids)
        log_student = log_p(student, RENDERER.student(problem))
        terms.append(torch.minimum(log_teacher.exp() * (log_teacher - log_student), torch.tensor(clip)))
    return torch.cat(terms).sum(dim=-1).mean()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_models(folder)
    return folder


@pytest.fixture(scope="module")
def opsd(folder: Path) -> Measured:
    student, teacher = (Qwen3ForCausalLM.from_pretrained(folder / role).eval() for role in ("student", "teacher"))
    loss = opsd_loss(student, teacher, CLIP)
    loss.backward()
    assert float(loss.detach()) < 0.9 * float(opsd_loss(student, teacher, 1e9).detach())  # the clip did cut
    parameters = dict(student.named_parameters())
    return Measured(float(loss.detach()), {name: grad for name in COMPARED if (grad := parameters[name].grad) is not None})


@pytest.fixture(scope="module")
def ours(folder: Path) -> Measured:
    with parallel_session():
        architecture = read_architecture(folder / "student")
        model = build_model(architecture, transformer_config(architecture, 1, 1, False, "fp32"))
        load_hf_weights(model, folder / "teacher")
        teacher = Teacher(model, "initial")
        load_hf_weights(model, folder / "student")
        optimization = build_optimization(model, {"lr": 1e-3}, {}, ScheduleConfig(), 10)
        optimization.zero_grad()
        pairs = zip(PROBLEMS, responses(), strict=True)
        examples = [Example(RENDERER.student(p), RENDERER.teacher(p, 1.0).prompt_ids, response) for p, response in pairs]
        divergence = Divergence("forward_kl", clip=CLIP, temperature=TEMPERATURE, chunk=7)
        loss = distill_step(optimization.wrapped, model, teacher, examples, divergence, micro_batch_tokens=1).loss
        for parameter in model.parameters():
            parameter.data = parameter.main_grad.clone()  # pyright: ignore[reportAttributeAccessIssue]
        return Measured(loss, {name: gradient for name, gradient in by_hf_name(model).items() if name in COMPARED})


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
def test_the_teacher_of_exposure_1_sees_the_whole_reference_solution(problem: Problem) -> None:
    context = RENDERER.teacher(problem, 1.0)
    steps, _, box = problem.solution.rpartition("\n")
    shown = RENDERER.decode(context.prompt_ids)
    assert context.revealed == context.segments
    assert f"reference\n{steps}\n\nanswer\n{box}" in shown


def test_the_loss_at_exposure_1_is_opsds(ours: Measured, opsd: Measured) -> None:
    assert ours.loss == pytest.approx(opsd.loss, rel=1e-5)


@pytest.mark.parametrize("name", COMPARED)
def test_the_gradient_at_exposure_1_is_opsds(ours: Measured, opsd: Measured, name: str) -> None:
    scale = float(opsd.gradients[name].abs().max())
    torch.testing.assert_close(ours.gradients[name], opsd.gradients[name], rtol=1e-5, atol=1e-5 * scale)
