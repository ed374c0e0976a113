"""Loss, metrics and every gradient of a distillation step equal plain PyTorch on the Hugging Face model, at every parallel layout."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isnan
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from transformers import LlamaForCausalLM, PreTrainedModel, Qwen3ForCausalLM

from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.checkpoint.reading import model_state, read_folder, write_folder
from megatron_atesd.config import ScheduleConfig
from megatron_atesd.distill.divergence import divergence
from megatron_atesd.distill.readings import Example
from megatron_atesd.distill.step import Normalize, StepResult, distill_step, example_losses
from megatron_atesd.distill.target import TEACHER, Target
from megatron_atesd.distill.teacher import Teacher
from megatron_atesd.model.gpt import build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.model.micro_batches import TokenIds
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.train.optimizer import build_optimization
from tests.support.distill_case import DIVERGENCE, RECOMPUTE, examples, save_models
from tests.support.hf_reference import by_hf_name
from tests.support.launch import run_distributed


@dataclass(frozen=True)
class Layout:
    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1
    sequence: bool = False
    context: int = 1
    packed: bool = False
    tokens: int = 1
    shares: tuple[int, ...] = (4,)  # examples of each data-parallel rank
    chunk: int = 5
    recompute: str = ""
    overlap: bool = False
    target: Target = TEACHER

    @property
    def name(self) -> str:
        shares = "-".join(map(str, self.shares))
        layout = f"tp{self.tensor}-pp{self.pipeline}-vp{self.virtual}-sp{int(self.sequence)}-tokens{self.tokens}-shares{shares}"
        target = f"{self.target.kind}{self.target.weight}"
        return f"{layout}-cp{self.context}-packed{int(self.packed)}-chunk{self.chunk}-overlap{int(self.overlap)}-{self.recompute}-{target}"


def asked(target: Target) -> list[Example]:
    """The examples, with what the teacher reads again: the student's prompt, or something else."""
    unaided = target.kind == "mix_unaided"
    return [replace(e, second_prompt=e.student_prompt if unaided else (*e.teacher_prompt[2:], 3)) for e in examples(37)]


def mixed(first_TV: torch.Tensor, second_TV: torch.Tensor, target: Target) -> torch.Tensor:
    """Log-probabilities of the target, of those of both readings."""
    if target.kind == "mix_exposures":
        return ((1 - target.weight) * first_TV.exp() + target.weight * second_TV.exp()).log()
    return torch.log_softmax((1 - target.weight) * first_TV + target.weight * second_TV, dim=-1)


def plain_reference(
    student: PreTrainedModel, teacher: PreTrainedModel, normalize: str, target: Target = TEACHER
) -> tuple[dict[str, float], list[float], list[list[float]], dict[str, torch.Tensor]]:
    """The same step as anyone would write it: whole logits, autograd, one sequence at a time.

    Its metrics, the mean loss of each response that is not empty, the KL of each token of each response, and every gradient.
    """
    token_losses, sequence_means, statistics = [], [], []
    for example in (e for e in asked(target) if e.response):

        def log_probs(model: PreTrainedModel, prompt: TokenIds, response: TokenIds = example.response) -> torch.Tensor:
            logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
            return torch.log_softmax(logits.float() / DIVERGENCE.temperature, dim=-1)

        with torch.no_grad():
            teacher_log_probs = log_probs(teacher, example.teacher_prompt)
            if target != TEACHER:
                teacher_log_probs = mixed(teacher_log_probs, log_probs(teacher, example.second_prompt), target)
        student_log_probs = log_probs(student, example.student_prompt)
        losses = divergence(teacher_log_probs, student_log_probs, DIVERGENCE.kind, DIVERGENCE.clip)
        statistics.append(plain_statistics(teacher_log_probs, student_log_probs.detach()))
        token_losses.append(losses)
        sequence_means.append(losses.mean())
    loss = torch.cat(token_losses).mean() if normalize == "token" else torch.stack(sequence_means).mean()
    loss.backward()
    names = ("kl", "disagreement", "confidence", "teacher_entropy", "student_entropy", "clipped_tokens")
    statistics_6T = torch.cat(statistics, dim=1)
    means = dict(zip(names, statistics_6T.mean(dim=1).tolist(), strict=True))
    clipped_kl = float(statistics_6T[0] @ statistics_6T[5] / statistics_6T[0].sum())
    assert 0 <= means["clipped_tokens"] <= clipped_kl < 1
    metrics = {"loss": float(loss.detach()), "tokens": sum(len(example.response) for example in examples(37)), "clipped_kl": clipped_kl}
    gradients = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    of_tokens = iter(statistics)
    token_kl = [next(of_tokens)[0].tolist() if example.response else [] for example in examples(37)]
    return metrics | means, [float(mean.detach()) for mean in sequence_means], token_kl, gradients


def plain_statistics(teacher_TV: torch.Tensor, student_TV: torch.Tensor) -> torch.Tensor:
    """[6, T] of log-probabilities: KL, whether the most likely tokens differ, the student's largest probability, both entropies, whether
    the clip touches the token."""
    differ_T = (teacher_TV.argmax(-1) != student_TV.argmax(-1)).float()
    entropies = (-(log_probs.exp() * log_probs).sum(-1) for log_probs in (teacher_TV, student_TV))
    clipped_T = ((teacher_TV.exp() * (teacher_TV - student_TV)).amax(-1) > DIVERGENCE.clip).float()
    return torch.stack((divergence(teacher_TV, student_TV, "forward_kl"), differ_T, student_TV.exp().amax(-1), *entropies, clipped_T))


def megatron_steps(layouts: Sequence[Layout], folder: Path, normalize: Normalize) -> list[tuple[StepResult, list[float], int]]:
    """One distill step at each layout; leaves every gradient, as a model folder of weights, in folder/<layout>.

    Besides, where context ranks share them, the losses of this data-parallel rank's examples one by one, on the last pipeline stage;
    and which example is its first one.
    """
    dist.init_process_group("gloo")
    return [megatron_step(layout, folder, normalize) for layout in layouts]


def megatron_step(layout: Layout, folder: Path, normalize: Normalize) -> tuple[StepResult, list[float], int]:
    with parallel_session(layout.tensor, layout.pipeline, virtual_pipeline=layout.virtual, context=layout.context):
        architecture = read_architecture(folder / "student")
        sizes = (layout.tensor, layout.pipeline, layout.sequence)
        recompute = RECOMPUTE[layout.recompute]
        config = transformer_config(architecture, *sizes, "fp32", recompute, layout.virtual, context=layout.context)
        model = build_model(architecture, config, layout.packed)
        load_hf_weights(model, folder / "teacher")
        teacher = Teacher(model, "initial")
        load_hf_weights(model, folder / "student")
        optimization = build_optimization(model, {"lr": 1e-3}, {"overlap_grad_reduce": layout.overlap}, ScheduleConfig(), 10)
        optimization.zero_grad()
        rank = parallel_state.get_data_parallel_rank()
        first = sum(layout.shares[:rank])
        mine = asked(layout.target)[first : first + layout.shares[rank]]
        divergence = replace(DIVERGENCE, chunk=layout.chunk, target=layout.target)
        result = distill_step(optimization.wrapped, model, teacher, mine, divergence, layout.tokens, normalize, sampled=3)
        losses = example_losses(model, teacher, mine, divergence) if layout.context > 1 else []
        for parameter in model.parameters():
            parameter.data = parameter.main_grad.clone()  # pyright: ignore[reportAttributeAccessIssue]
        write_folder(folder / layout.name, model_state(model), folder / "student")
        return result, losses, first


close = partial(pytest.approx, rel=1e-4)


def gradients_by_hf_name(folder: Path, layout: Layout) -> dict[str, torch.Tensor]:
    with parallel_session():
        architecture = read_architecture(folder / "student")
        model = build_model(architecture, transformer_config(architecture, 1, 1, False, "fp32"))
        loaded = read_folder(folder / layout.name, model_state(model))
        model.load_state_dict({name.removeprefix("model."): value for name, value in loaded.items()})
        return by_hf_name(model)


def by_place(token_kl: Sequence[Sequence[float]]) -> dict[int, tuple[int, float]]:
    """Tokens and mean KL of those numbered 1, 2 – 3, 4 – 7, 8 – 15 in their responses."""
    bins = {first: [kl for response in token_kl for kl in response[first - 1 : 2 * first - 1]] for first in (1, 2, 4, 8)}
    return {first: (len(values), sum(values) / len(values)) for first, values in bins.items() if values}


LAYOUTS = {
    1: [Layout(), Layout(tokens=40), Layout(tokens=200, chunk=100), Layout(recompute="full"), Layout(tokens=40, recompute="selective")],
    2: [
        Layout(tensor=2),
        Layout(tensor=2, sequence=True, tokens=40, recompute="full"),
        Layout(pipeline=2),
        Layout(pipeline=2, tokens=40),
        Layout(pipeline=2, virtual=2),
        Layout(pipeline=2, virtual=2, tokens=40, recompute="full"),
        Layout(shares=(2, 2)),
        Layout(shares=(3, 1), tokens=40),
        Layout(shares=(4, 0), tokens=60),
        Layout(shares=(1, 3), overlap=True),
    ],
    4: [
        Layout(tensor=2, pipeline=2),
        Layout(tensor=2, pipeline=2, sequence=True, tokens=40),
        Layout(tensor=2, sequence=True, tokens=40, shares=(0, 4)),
        Layout(pipeline=2, shares=(1, 3)),
        Layout(tensor=2, pipeline=2, virtual=2, sequence=True),
        Layout(pipeline=2, virtual=2, shares=(0, 4), tokens=20, overlap=True),
    ],
}
# Context parallelism, and sequences one after the other.
LONG_LAYOUTS = {
    2: [
        Layout(packed=True, shares=(3, 1), tokens=45),
        Layout(pipeline=2, packed=True, tokens=200, recompute="selective"),
        Layout(context=2),
        Layout(context=2, tokens=60, recompute="full"),
        Layout(context=2, packed=True, tokens=60, recompute="selective"),
        Layout(tensor=2, sequence=True, packed=True, tokens=45),
    ],
    4: [
        Layout(context=2, tensor=2, sequence=True, tokens=60),
        Layout(context=2, pipeline=2, virtual=2, packed=True, tokens=30),
        Layout(context=2, shares=(3, 1), tokens=40, overlap=True),
        Layout(context=4, tokens=60),
    ],
}


@pytest.mark.parametrize("world", LAYOUTS)
@pytest.mark.parametrize(
    ("family", "tied", "normalize"), [("qwen3", True, "token"), ("qwen3", False, "sequence"), ("llama", True, "token")]
)
def test_metrics_and_every_gradient_equal_plain_pytorch(world: int, family: str, tied: bool, normalize: Normalize, tmp_path: Path) -> None:
    compare(LAYOUTS[world], world, family, tied, normalize, tmp_path)


@pytest.mark.parametrize("world", LONG_LAYOUTS)
def test_context_parallelism_and_packed_sequences_change_nothing(world: int, tmp_path: Path) -> None:
    compare(LONG_LAYOUTS[world], world, "qwen3", True, "sequence", tmp_path)


TARGETS = [Target("mix_exposures", 0.3), Target("mix_unaided", 0.4), Target("mix_unaided", -0.5)]
TARGET_LAYOUTS = {
    1: [Layout(), Layout(tokens=200, chunk=100)],
    2: [Layout(tensor=2), Layout(pipeline=2, tokens=40), Layout(shares=(3, 1)), Layout(context=2, packed=True, tokens=60)],
}


@pytest.mark.parametrize("world", TARGET_LAYOUTS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_target_that_is_a_mix_equals_plain_pytorch(world: int, target: Target, tmp_path: Path) -> None:
    layouts = [replace(layout, target=target) for layout in TARGET_LAYOUTS[world]]
    compare(layouts, world, "qwen3", True, "token", tmp_path, target)


def test_a_mix_of_logits_with_weight_0_is_the_teacher_bit_for_bit(tmp_path: Path) -> None:
    save_models(tmp_path, "qwen3", tied=True)
    layouts = [Layout(target=target) for target in (TEACHER, Target("mix_unaided", 0.0))]
    plain, mix = (result for result, *_ in run_distributed(megatron_steps, 1, layouts, tmp_path, "token")[0])
    assert (mix.loss, mix.kl, mix.teacher_entropy) == (plain.loss, plain.kl, plain.teacher_entropy)
    gradients = [gradients_by_hf_name(tmp_path, layout) for layout in layouts]
    assert all(torch.equal(gradients[1][name], gradient) for name, gradient in gradients[0].items())


def compare(
    layouts: Sequence[Layout], world: int, family: str, tied: bool, normalize: Normalize, tmp_path: Path, target: Target = TEACHER
) -> None:
    save_models(tmp_path, family, tied)
    results = run_distributed(megatron_steps, world, layouts, tmp_path, normalize)
    load = Qwen3ForCausalLM if family == "qwen3" else LlamaForCausalLM
    student, teacher = (load.from_pretrained(tmp_path / role).eval() for role in ("student", "teacher"))
    metrics, each, token_kl, expected = plain_reference(student, teacher, normalize, target)
    for index, layout in enumerate(layouts):
        for rank in results:
            result, losses, first = rank[index]
            assert {name: getattr(result, name) for name in metrics} == pytest.approx(metrics, rel=1e-5), layout
            assert all(loss in map(close, each) or isnan(loss) for loss in losses), layout  # nan: of an empty response
            sampled = token_kl[first : first + len(result.token_kl)]
            assert [len(part) for part in result.token_kl] == [len(part) for part in sampled], layout
            assert [value for part in result.token_kl for value in part] == close([value for part in sampled for value in part]), layout
            assert {place.first: (place.tokens, close(place.kl)) for place in result.by_place} == by_place(token_kl), layout
        got = gradients_by_hf_name(tmp_path, layout)
        assert set(got) == set(expected)
        for name, gradient in expected.items():
            scale = float(gradient.abs().max())
            assert scale > 0, name
            torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=lambda m, at=f"{layout} {name}": f"{at}: {m}")
