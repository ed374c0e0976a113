"""The fused loss over two or four vocabulary shards, of which the last are padded, is the loss over the whole vocabulary."""

from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_atesd.distill.divergence import ClipMode, Divergence, Kind
from megatron_atesd.distill.fused import distill_loss
from megatron_atesd.distill.target import TEACHER, Target
from tests.support.launch import run_distributed

ENTRIES = 16  # of the padded vocabulary, over all shards
TOKENS, HIDDEN = 90, 5
VOCABULARIES = (15, 7)  # the last shard has one row of padding; or there are shards of nothing else
KINDS: tuple[Kind, ...] = ("forward_kl", "reverse_kl", "jsd")
CLIPS: tuple[tuple[float, ClipMode], ...] = ((0.0, "entry"), (0.1, "entry"), (0.55, "token"))
MIX = Target("mix_exposures", 0.3)
Case = tuple[int, Kind, tuple[float, ClipMode], int, Target]  # vocabulary, kind, clip, top-k, target
CASES: list[Case] = [
    *product(VOCABULARIES, KINDS, CLIPS, (0, 5), [TEACHER]),
    *product(VOCABULARIES, KINDS, CLIPS[2:], (0, 5), [MIX]),
]
Result = dict[str, torch.Tensor]


def inputs(vocabulary: int) -> tuple[torch.Tensor, ...]:
    """Hidden states and head of the student, then of the teacher, and token weights, in float64; heads without padding."""
    random = torch.Generator().manual_seed(vocabulary)
    shapes = ((TOKENS, HIDDEN), (vocabulary, HIDDEN)) * 2
    values = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes]
    return *values, torch.linspace(0.1, 1.0, TOKENS, dtype=torch.float64)


def result(
    values: tuple[torch.Tensor, ...],
    kind: Kind,
    clip: tuple[float, ClipMode],
    top_k: int,
    target: Target = TEACHER,
    valid: int | None = None,
    group: Any = None,
) -> Result:
    hidden_TH, weight_VH = (value.clone().requires_grad_() for value in values[:2])
    teacher_TH, teacher_VH, token_weight_T = values[2:]
    if target == MIX:
        teacher_TH = torch.stack((teacher_TH, teacher_TH.flip(0)))
    setting = Divergence(kind, 0.3, clip[0], temperature=1.1, chunk=37, top_k=top_k, clip_mode=clip[1], target=target)
    loss, stats = distill_loss(hidden_TH, weight_VH, teacher_TH, teacher_VH, token_weight_T, setting, valid, group)
    loss.backward()
    assert hidden_TH.grad is not None
    assert weight_VH.grad is not None
    named = {"loss": loss.detach(), "hidden gradient": hidden_TH.grad, "weight gradient": weight_VH.grad}
    return named | vars(stats)


def sharded_results() -> list[Result]:
    """This rank's result of every case; rows of padding would win every arg-max if they counted."""
    dist.init_process_group("gloo")
    rows = ENTRIES // dist.get_world_size()
    results = []
    for vocabulary, kind, clip, top_k, target in CASES:
        student_TH, student_VH, teacher_TH, teacher_VH, token_weight_T = inputs(vocabulary)
        shards = [torch.cat((w, torch.full((ENTRIES - vocabulary, HIDDEN), 50.0).double())) for w in (student_VH, teacher_VH)]
        mine = slice(dist.get_rank() * rows, (dist.get_rank() + 1) * rows)
        values = (student_TH, shards[0][mine], teacher_TH, shards[1][mine], token_weight_T)
        valid = min(rows, max(0, vocabulary - mine.start))
        results.append(result(values, kind, clip, top_k, target, valid, dist.group.WORLD))
    dist.destroy_process_group()
    return results


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest) -> list[list[Result]]:
    return run_distributed(sharded_results, request.param)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_rank_has_the_whole_vocabularys_result(case: Case, ranks: list[list[Result]]) -> None:
    vocabulary, kind, clip, top_k, target = case
    expected = result(inputs(vocabulary), kind, clip, top_k, target)
    padding = torch.zeros(ENTRIES - vocabulary, HIDDEN, dtype=torch.float64)
    shards = torch.cat((expected["weight gradient"], padding)).chunk(len(ranks))
    for results, shard in zip(ranks, shards, strict=True):
        whole = expected | {"weight gradient": shard}
        torch.testing.assert_close(results[CASES.index(case)], whole, rtol=1e-10, atol=1e-13)


def test_the_clip_cuts_in_these_cases() -> None:
    for kind, top_k in product(KINDS, (0, 5)):
        whole, entry, token = (result(inputs(15), kind, clip, top_k) for clip in CLIPS)
        assert entry["loss"] < 0.9 * whole["loss"]
        assert int(entry["clipped_T"].sum()) > TOKENS / 3
        assert token["loss"] < whole["loss"]
        assert 0 < int(token["clipped_T"].sum()) < TOKENS


def test_top_tokens_of_equal_column_in_different_shards_disagree(ranks: list[list[Result]]) -> None:
    student_TH, student_VH, teacher_TH, teacher_VH, _ = inputs(15)
    student_T, teacher_T = (student_TH @ student_VH.t()).argmax(-1), (teacher_TH @ teacher_VH.t()).argmax(-1)
    rows = ENTRIES // len(ranks)
    elsewhere_T = student_T // rows != teacher_T // rows
    alike_T = elsewhere_T & (student_T % rows == teacher_T % rows)
    assert 0 < int(alike_T.sum()) < int(elsewhere_T.sum()) < TOKENS
    for results in ranks:
        assert torch.equal(results[0]["disagreement_T"], (student_T != teacher_T).double())
        assert bool((results[0]["disagreement_T"][alike_T] == 1.0).all())


def counted_collectives(top_k: int, clip: tuple[float, ClipMode], target: Target) -> dict[str, int]:
    """Collectives of one call that has three chunks."""
    dist.init_process_group("gloo")
    counts = {"all_reduce": 0, "all_gather": 0}

    def count(name: str) -> Any:
        real = getattr(dist, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return real(*args, **kwargs)

        return counting

    for name in counts:
        setattr(dist, name, count(name))
    student_TH, student_VH, teacher_TH, teacher_VH, token_weight_T = inputs(16)
    mine = slice(dist.get_rank() * 8, (dist.get_rank() + 1) * 8)
    values = (student_TH, student_VH[mine], teacher_TH, teacher_VH[mine], token_weight_T)
    result(values, "forward_kl", clip, top_k, target, 8, dist.group.WORLD)
    dist.destroy_process_group()
    return counts


@pytest.mark.parametrize("clip", CLIPS[1:], ids=str)
@pytest.mark.parametrize(
    ("top_k", "target", "expected"),
    [
        (0, TEACHER, {"all_gather": 3, "all_reduce": 3 + 1}),
        (5, TEACHER, {"all_gather": 3 * 3, "all_reduce": 1}),
        (0, MIX, {"all_gather": 2 * 3, "all_reduce": 3 + 1}),
    ],
)
def test_collectives_are_as_few_as_documented(top_k: int, target: Target, expected: dict[str, int], clip: tuple[float, ClipMode]) -> None:
    assert run_distributed(counted_collectives, 2, top_k, clip, target) == [expected] * 2
