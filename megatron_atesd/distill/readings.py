"""What the loss needs of a role's pass over responses: the hidden states of their tokens, from which it makes logits chunk by chunk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_atesd.distill.target import Target
from megatron_atesd.distill.teacher import Teacher
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.micro_batches import MicroBatch, Pair, TokenIds, padding_share
from megatron_atesd.model.modes import evaluation_mode
from megatron_atesd.model.schedule import model_batches, run_schedule


@dataclass(frozen=True)
class Example:
    """One response, as the student was asked for it and as the teacher will judge it; bin: of its problem's difficulty.

    second_prompt: after which the teacher reads it again, for a target that is a mix.
    """

    student_prompt: TokenIds
    teacher_prompt: TokenIds
    response: TokenIds
    bin: int = 0
    second_prompt: TokenIds = ()


@dataclass(frozen=True)
class ResponseStates:
    """What passes leave: hidden states [t, H] of each pair's response (last stage only), and their (padding, all) tokens.

    readings: one, or two whose probabilities the loss mixes.
    """

    readings: tuple[Mapping[int, Tensor], ...]
    padded: tuple[int, int]

    def of_batch(self, members: Sequence[int], hidden_TH: Tensor) -> Tensor:
        """As `distill_loss` takes them: [T, H] of these examples, or [2, T, H] of two readings; hidden_TH: the student's."""
        empty_0H = hidden_TH.new_empty(0, hidden_TH.shape[1])
        found = [torch.cat([empty_0H, *(reading[member] for member in members)]) for reading in self.readings]
        return found[0] if len(found) == 1 else torch.stack(found)


def teacher_passes(
    model: HiddenStateGPT, teacher: Teacher, views: Sequence[Sequence[Example]], micro_batch_tokens: int, target: Target
) -> list[ResponseStates]:
    """The teacher's final hidden states of this data-parallel rank's examples, for each of `views`: the same but for their teacher_prompt.

    The loss forms logits, chunk by chunk. What a mix reads besides is read once for all views. Collective.
    """
    with torch.no_grad(), teacher.applied():
        found = [response_states(model, [(e.teacher_prompt, e.response) for e in view], micro_batch_tokens) for view in views]
        if target.kind == "teacher":
            return found
        second = response_states(model, [(e.second_prompt, e.response) for e in views[0]], micro_batch_tokens)
        return [_mixed(states, second, target) for states in found]


def response_states(model: HiddenStateGPT, pairs: Sequence[Pair], micro_batch_tokens: int) -> ResponseStates:
    """The model's final hidden states of the responses in this data-parallel rank's pairs, without gradient: one reading. Collective."""

    def last_stage(batch: MicroBatch, hidden_BSH: Tensor) -> tuple[Tensor, Tensor, list[tuple[int, Tensor]]]:
        hidden_TH = batch.response_hidden(hidden_BSH)
        parts = hidden_TH.split(batch.shared_lengths())
        return hidden_TH.sum(), torch.ones((), dtype=torch.int, device=hidden_TH.device), list(zip(batch.members, parts, strict=True))

    with torch.no_grad(), evaluation_mode(model):
        batches = model_batches(model, pairs, micro_batch_tokens)
        hidden = run_schedule(model, batches, last_stage, forward_only=True)
    return ResponseStates(({member: part for batch in hidden for member, part in batch},), padding_share(batches, pairs))


def _mixed(first: ResponseStates, second: ResponseStates, target: Target) -> ResponseStates:
    """Both readings, or, of a mix of logits, the mix of their hidden states, in the memory of the first."""
    padding, slots = (a + b for a, b in zip(first.padded, second.padded, strict=True))
    if target.readings == 2:
        return ResponseStates((*first.readings, *second.readings), (padding, slots))
    for member, part in second.readings[0].items():
        first.readings[0][member].lerp_(part, target.weight)
    return ResponseStates(first.readings, (padding, slots))
