"""megatron.core's HybridModel with our folders computes what our GPTModel does: logits and gradients bit for bit, in our layouts."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import tensor_parallel
from torch import Tensor

from checkpoints_convert import hf_to_megatron
from megatron_atesd.checkpoint.reading import model_state, read_folder, write_folder
from megatron_atesd.model.gpt import HiddenStateGPT, build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.model.schedule import run_schedule
from megatron_atesd.model.trained import MODEL_PREFIX
from megatron_atesd.parallel.context import Bounds, split_sequences
from megatron_atesd.parallel.session import parallel_session
from tests.support.distill_case import RECOMPUTE, save_models
from tests.support.launch import run_distributed
from tests.support.student_session import session

pytest.importorskip(
    "megatron.core.dist_checkpointing.gpt_checkpoint_interop",
    reason="megatron-core below 0.19 has no gpt_checkpoint_interop, by which a HybridModel reads checkpoints of a GPTModel",
)
from tests.support.hybrid_model import Hybrid, gpt_name

FOLDERS = ("converted", "step_2")


@dataclass(frozen=True)
class Layout:
    """segments: layers in each chunk of the whole model. ours: settings that only our model needs for it. both: of both models."""

    sizes: dict[str, int] = field(default_factory=dict)  # of parallel_session
    segments: tuple[int, ...] = (4,)
    sequence: bool = False
    packed: bool = False
    ours: dict[str, Any] = field(default_factory=dict)
    both: dict[str, Any] = field(default_factory=dict)

    def config(self, arch: Any, settings: dict[str, Any]) -> Any:
        sizes: dict[str, Any] = {"tensor": 1, "pipeline": 1, **self.sizes}
        return transformer_config(arch, sequence=self.sequence, dtype="fp32", user=settings, **sizes)


LAYOUTS = {
    "tensor": Layout({"tensor": 2}),
    "sequence": Layout({"tensor": 2}, sequence=True),
    "pipeline": Layout({"pipeline": 2}, (2, 2)),
    "uneven": Layout({"pipeline": 2}, (3, 1), ours={"pipeline_model_parallel_layout": "Et*3|tL"}),
    "virtual": Layout({"pipeline": 2, "virtual_pipeline": 2}, (1, 1, 1, 1)),
    "context": Layout({"context": 2}),
    "packed-context": Layout({"context": 2}, packed=True),
}
ALONE = {
    "alone": Layout(),
    "packed": Layout(packed=True),
    "recompute": Layout(both=RECOMPUTE["full"]),
    "recompute-attention": Layout(both=RECOMPUTE["selective"]),
}


@dataclass(frozen=True)
class Pass:
    """Of one model on one rank. logits: [B, S / CP, V] of each micro-batch, on the last stage. gradients: by name, chunk after chunk."""

    logits: list[Tensor]
    gradients: dict[str, Tensor]


def both_models(folder: Path, layouts: dict[str, Layout]) -> dict[tuple[str, str], tuple[Pass, Pass]]:
    """By layout and folder what our model and a HybridModel make of the same tokens."""
    dist.init_process_group("gloo")
    return {(name, source): passes for name, layout in layouts.items() for source, passes in of_layout(folder, layout)}


def of_layout(folder: Path, layout: Layout) -> Iterator[tuple[str, tuple[Pass, Pass]]]:
    arch = read_architecture(folder / "student")
    with parallel_session(**layout.sizes):
        ours = build_model(arch, layout.config(arch, layout.both | layout.ours), layout.packed)
        hybrid = Hybrid(arch, layout.config(replace(arch, layers=2 * arch.layers), layout.both), layout.segments)
        for source in FOLDERS:
            loaded = read_folder(folder / source, {"model": model_state(ours)})["model"]
            ours.load_state_dict({name.removeprefix(MODEL_PREFIX): value for name, value in loaded.items()})
            hybrid.load(folder / source)
            yield source, (one_pass(ours, layout.packed), one_pass(hybrid, layout.packed))


def one_pass(model: Any, packed: bool) -> Pass:
    """Two micro-batches through the schedule, forward and backward; lengths that context parallelism can divide."""
    tokens = torch.arange(2 * 24).reshape(2, 24) * 5 % 37
    batches: Any = [
        SimpleNamespace(ids_BS=row[None], bounds=(0, 16, 24)) if packed else SimpleNamespace(ids_BS=row.view(2, 12), bounds=None)
        for row in tokens
    ]

    def last_stage(batch: Any, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = logits_of(model, out, batch.bounds) if isinstance(model, HiddenStateGPT) else out
        whole = tensor_parallel.gather_from_tensor_model_parallel_region(logits)
        return whole.square().sum(), torch.tensor(1), whole.detach()

    model.zero_grad()
    logits = run_schedule(model, batches, last_stage, forward_only=False)
    spelt = str if isinstance(model, HiddenStateGPT) else gpt_name
    named = ((f"{i}.{spelt(name)}", p) for i, chunk in enumerate(model.chunks) for name, p in chunk.named_parameters())
    return Pass(logits, {name: p.grad.clone() for name, p in named if p.grad is not None})


def logits_of(model: HiddenStateGPT, hidden_BSH: Tensor, bounds: Bounds | None) -> Tensor:
    """[B, S / CP, V / TP] of this rank's tokens; they come one position after the other, as in HybridModel's vocabulary projection, whose
    gradient is a sum over them."""
    own_BSH = split_sequences(hidden_BSH, bounds or (0, hidden_BSH.shape[1]))
    own_SBH = tensor_parallel.copy_to_tensor_model_parallel_region(own_BSH.transpose(0, 1).contiguous())
    return F.linear(own_SBH, model.head_weight()).transpose(0, 1).contiguous()


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def passes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], tuple[Pass, Pass]]]:
    """By rank; the first of them has those of one process, too."""
    folder = tmp_path_factory.mktemp("hybrid")
    save_models(folder, "qwen3", request.param)
    hf_to_megatron.convert(folder / "student", folder / "converted")
    with parallel_session():
        trained = session(folder)
        trained.train(2)
        write_folder(folder / "step_2", trained.state(loading=False), folder / "student")
    first, second = run_distributed(both_models, 2, folder, LAYOUTS)
    return [first | run_distributed(both_models, 1, folder, ALONE)[0], second]


CASES = [(layout, source) for layout in LAYOUTS | ALONE for source in FOLDERS]


@pytest.mark.parametrize("case", CASES, ids=["-".join(case) for case in CASES])
def test_logits_are_those_of_our_model_bit_for_bit(case: tuple[str, str], passes: Any) -> None:
    pairs = [pair for rank in passes if case in rank for pair in zip(*(one.logits for one in rank[case]), strict=True)]
    assert len(pairs) >= 2
    assert all(torch.equal(ours, hybrid) for ours, hybrid in pairs)


@pytest.mark.parametrize("case", CASES, ids=["-".join(case) for case in CASES])
def test_gradients_are_those_of_our_model_bit_for_bit(case: tuple[str, str], passes: Any) -> None:
    for ours, hybrid in (rank[case] for rank in passes if case in rank):
        assert list(ours.gradients) == list(hybrid.gradients)
        assert [name for name, gradient in ours.gradients.items() if not torch.equal(gradient, hybrid.gradients[name])] == []
