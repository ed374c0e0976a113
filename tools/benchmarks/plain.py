"""The same step in plain PyTorch and transformers, as a practised person writes it.

Frozen copy of the model as teacher, SDPA attention, right padding (so causal attention needs no mask), logits on response positions
only, log_softmax and kl_div in fp32, fused AdamW. In bf16, weights and optimizer state are bf16 too, without fp32 master weights.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen3ForCausalLM

from benchmarks.flops import DTYPES
from benchmarks.measurement import CLIP_NORM, LEARNING_RATE, Measurement, Step
from benchmarks.watch import Stopwatch


@contextmanager
def plain(task: Measurement) -> Iterator[Step]:
    """A step that starts from the weights of the task's model folder."""
    student, teacher = (load(task) for _ in range(2))
    teacher.requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    def step(watch: Stopwatch) -> tuple[float, float]:
        with watch.phase("optimizer"):
            optimizer.zero_grad()
        total = sum(micro_batch(student, teacher, task, first, watch) for first in range(0, task.workload.prompts, task.workload.sequences))
        with watch.phase("optimizer"):
            norm = torch.nn.utils.clip_grad_norm_(student.parameters(), CLIP_NORM)
            optimizer.step()
        return float(total), float(norm)

    yield step


def load(task: Measurement) -> Any:
    """A model with the task's weights, in its dtype, on its device."""
    model: Any = Qwen3ForCausalLM.from_pretrained(task.model, dtype=DTYPES[task.dtype], attn_implementation="sdpa")
    return model.to(task.device)


def micro_batch(student: Any, teacher: Any, task: Measurement, first: int, watch: Stopwatch) -> float:
    """Forward and backward of the sequences from `first` on; returns their part of the mean loss over the step's tokens."""
    part = slice(first, first + task.workload.sequences)
    prompts, references, responses = (task.ids[role][part] for role in ("prompts", "references", "responses"))
    teacher_prompts = [[*prompt, *reference] for prompt, reference in zip(prompts, references, strict=True)]
    with watch.phase("teacher"), torch.no_grad():
        teacher_hidden_TH = response_hidden(teacher, teacher_prompts, responses, task.device)
    with watch.phase("student"):
        hidden_TH = response_hidden(student, prompts, responses, task.device)
    with watch.phase("loss"):
        with torch.no_grad():
            teacher_TV = F.log_softmax(teacher.lm_head(teacher_hidden_TH).float(), dim=-1)
        student_TV = F.log_softmax(student.lm_head(hidden_TH).float(), dim=-1)
        loss = F.kl_div(student_TV, teacher_TV, reduction="sum", log_target=True) / task.workload.tokens
    watch.backward("loss", loss, hidden_TH)
    before = watch.seconds["loss"]
    with watch.phase("student"):
        loss.backward()
    watch.seconds["student"] -= watch.seconds["loss"] - before
    return float(loss.detach())


def response_hidden(model: Any, prompts: Sequence[list[int]], responses: Sequence[list[int]], device: str) -> Tensor:
    """Final hidden states [T, H] at the positions that predict the response tokens."""
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    width = max(len(row) for row in rows)
    ids_BS = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    places = [
        row * width + len(prompt) - 1 + i
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
        for i in range(len(response))
    ]
    hidden_BSH = model.model(ids_BS, use_cache=False).last_hidden_state
    return hidden_BSH.flatten(0, 1)[torch.tensor(places, device=device)]
