"""The fused loss over two vocabulary shards, of which the last is padded, is the loss over the whole vocabulary."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_atesd.distill.divergence import Kind
from megatron_atesd.distill.fused import Divergence, distill_loss
from tests.distributed.launch import run_distributed

SHARDS, ROWS = 2, 7
TOKENS, HIDDEN = 90, 5
VOCABULARIES = (13, 7)  # the last shard has one row of padding, or nothing else
KINDS: tuple[Kind, ...] = ("forward_kl", "reverse_kl", "jsd")
CASES: list[tuple[int, Kind, float]] = [(vocabulary, kind, clip) for vocabulary in VOCABULARIES for kind in KINDS for clip in (0.0, 0.02)]
Result = dict[str, torch.Tensor]


def inputs(vocabulary: int) -> tuple[torch.Tensor, ...]:
    """Hidden states and head of the student, then of the teacher, and token weights, in float64; heads without padding."""
    random = torch.Generator().manual_seed(vocabulary)
    shapes = ((TOKENS, HIDDEN), (vocabulary, HIDDEN)) * 2
    values = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes]
    return *values, torch.linspace(0.1, 1.0, TOKENS, dtype=torch.float64)


def result(values: tuple[torch.Tensor, ...], kind: Kind, clip: float, valid: int | None = None, group: Any = None) -> Result:
    hidden_TH, weight_VH = (value.clone().requires_grad_() for value in values[:2])
    teacher_TH, teacher_VH, token_weight_T = values[2:]
    setting = Divergence(kind, 0.3, clip, temperature=1.1, chunk=37)
    loss, stats = distill_loss(hidden_TH, weight_VH, teacher_TH, teacher_VH, token_weight_T, setting, valid, group)
    loss.backward()
    assert hidden_TH.grad is not None
    assert weight_VH.grad is not None
    named = {"loss": loss.detach(), "hidden gradient": hidden_TH.grad, "weight gradient": weight_VH.grad}
    return named | {"kl": stats.kl_T, "disagreement": stats.disagreement_T, "confidence": stats.confidence_T}


def sharded_results() -> list[Result]:
    """This rank's result of every case; rows of padding would win every arg-max if they counted."""
    dist.init_process_group("gloo")
    results = []
    for vocabulary, kind, clip in CASES:
        student_TH, student_VH, teacher_TH, teacher_VH, token_weight_T = inputs(vocabulary)
        shards = [torch.cat((w, torch.full((SHARDS * ROWS - vocabulary, HIDDEN), 50.0).double())) for w in (student_VH, teacher_VH)]
        mine = slice(dist.get_rank() * ROWS, (dist.get_rank() + 1) * ROWS)
        values = (student_TH, shards[0][mine], teacher_TH, shards[1][mine], token_weight_T)
        valid = min(ROWS, max(0, vocabulary - mine.start))
        results.append(result(values, kind, clip, valid, dist.group.WORLD))
    dist.destroy_process_group()
    return results


@pytest.fixture(scope="module")
def ranks() -> list[list[Result]]:
    return run_distributed(sharded_results, SHARDS)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_rank_has_the_whole_vocabularys_result(case: tuple[int, Kind, float], ranks: list[list[Result]]) -> None:
    vocabulary, kind, clip = case
    expected = result(inputs(vocabulary), kind, clip)
    padding = torch.zeros(SHARDS * ROWS - vocabulary, HIDDEN, dtype=torch.float64)
    weight_gradient = torch.cat((expected["weight gradient"], padding))
    for rank, results in enumerate(ranks):
        whole = expected | {"weight gradient": weight_gradient[rank * ROWS : (rank + 1) * ROWS]}
        torch.testing.assert_close(results[CASES.index(case)], whole, rtol=1e-10, atol=1e-13)


def test_the_clip_cuts_in_these_cases() -> None:
    for kind in KINDS:
        assert result(inputs(13), kind, 0.02)["loss"] < 0.9 * result(inputs(13), kind, 0.0)["loss"]


def test_top_tokens_of_equal_column_in_different_shards_disagree(ranks: list[list[Result]]) -> None:
    student_TH, student_VH, teacher_TH, teacher_VH, _ = inputs(13)
    student_T, teacher_T = (student_TH @ student_VH.t()).argmax(-1), (teacher_TH @ teacher_VH.t()).argmax(-1)
    elsewhere_T = student_T // ROWS != teacher_T // ROWS
    alike_T = elsewhere_T & (student_T % ROWS == teacher_T % ROWS)
    assert 0 < int(alike_T.sum()) < int(elsewhere_T.sum()) < TOKENS
    for results in ranks:
        assert torch.equal(results[0]["disagreement"], (student_T != teacher_T).double())
        assert bool((results[0]["disagreement"][alike_T] == 1.0).all())
