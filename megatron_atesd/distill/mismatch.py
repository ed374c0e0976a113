"""How far the student is from the teacher at each of several exposures, on the same responses.

The student's states do not depend on the exposure: one student pass is enough. Exposures that reveal as much of a problem give its teacher
the same prompt, which is read once. All teacher's prompts go through one pass, so that micro-batches are full. What is left is the work of
reading each response after each different prompt.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_atesd.distill.divergence import Divergence
from megatron_atesd.distill.fused import distill_loss
from megatron_atesd.distill.readings import response_states
from megatron_atesd.distill.teacher import Teacher
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.micro_batches import MicroBatch, Pair, TokenIds
from megatron_atesd.model.modes import evaluation_mode
from megatron_atesd.model.schedule import LastStage, model_batches, run_schedule, sum_over_ranks
from megatron_atesd.model.vocabulary import vocabulary_shard
from megatron_atesd.parallel.groups import data_parallel_place

STATISTICS = ("kl", "disagreement", "confidence", "teacher_entropy")  # of TokenStatistics and StepResult


@torch.no_grad()
def mismatch_sums(
    model: HiddenStateGPT,
    teacher: Teacher,
    rollouts: Sequence[Pair],
    prompts: Sequence[Sequence[TokenIds]],
    divergence: Divergence,
    micro_batch_tokens: int,
) -> Tensor:
    """STATISTICS summed over the tokens of each response, at each exposure: [N, A, 4] float64 on the CPU, equal on every rank.

    rollouts: N pairs of the student's prompt and its response, the same on every rank. prompts: of each, the teacher's at A exposures. Each
    data-parallel rank scores its share. Kept in memory: the student's states of the rank's responses. Collective over all ranks.
    """
    rank, size = data_parallel_place()
    mine = range(len(rollouts))[rank::size]
    rows = [(i, prompt) for i, place in enumerate(mine) for prompt in dict.fromkeys(map(tuple, prompts[place]))]
    states = response_states(model, [rollouts[place] for place in mine], micro_batch_tokens).readings[0]
    last_stage = _teacher_stage(model, teacher, [states.get(i) for i, _ in rows], divergence)
    with evaluation_mode(model), teacher.applied():
        batches = model_batches(model, [(prompt, rollouts[mine[i]][1]) for i, prompt in rows], micro_batch_tokens)
        found = run_schedule(model, batches, last_stage, forward_only=True)
    of_row = {rows[member]: sums_4 for members, sums_N4 in found for member, sums_4 in zip(members, sums_N4, strict=False)}
    total_NA4 = torch.zeros(len(rollouts), len(prompts[0]), len(STATISTICS), dtype=torch.float64, device=torch.cuda.current_device())
    for i, place in enumerate(mine) if of_row else ():
        total_NA4[place] = torch.stack([of_row[i, tuple(prompt)] for prompt in prompts[place]])
    return torch.tensor(sum_over_ranks([total_NA4.flatten()], total_NA4.numel()), dtype=torch.float64).view(total_NA4.shape)


def _teacher_stage(model: HiddenStateGPT, teacher: Teacher, states: Sequence[Tensor | None], divergence: Divergence) -> LastStage:
    """What the last stage does in the teacher's pass: (members, sums [B, 4] over their tokens). states: the student's of each row."""
    shard = vocabulary_shard(model)
    # Inside the teacher's pass the model's head is the teacher's: the student's is taken before.
    student_VH, teacher_VH = (model.head_weight().data, teacher.head_weight()) if model.post_process else (torch.empty(0), torch.empty(0))

    def last_stage(batch: MicroBatch, hidden_BSH: Tensor) -> tuple[Tensor, Tensor, tuple[tuple[int, ...], Tensor]]:
        teacher_TH = batch.response_hidden(hidden_BSH)
        parts = [part for member in batch.members if (part := states[member]) is not None]
        student_TH = torch.cat([teacher_TH.new_empty(0, teacher_TH.shape[1]), *parts])
        weight_T = torch.ones(len(teacher_TH), device=teacher_TH.device)
        _, found = distill_loss(student_TH, student_VH, teacher_TH, teacher_VH, weight_T, divergence, shard.valid, shard.group)
        values_T4 = torch.stack([getattr(found, f"{name}_T") for name in STATISTICS], dim=1).double()
        sums_N4 = values_T4.new_zeros(len(batch.lengths_N), len(STATISTICS)).index_add(0, batch.sequence_T, values_T4)
        return values_T4.sum(), torch.tensor(len(values_T4), dtype=torch.int, device=values_T4.device), (batch.members, sums_N4)

    return last_stage
