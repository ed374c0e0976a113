"""The teacher's weights: the start's (initial), a moving average (ema) or the student's own (live), sharded like the model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from megatron_atesd.model.qwen3 import HiddenStateGPT

PREFIX = "teacher."


class Teacher:
    """Weights beside the student's, put into the same modules by reference for the length of a pass."""

    def __init__(self, model: HiddenStateGPT, kind: Literal["initial", "ema", "live"], ema_decay: float = 0.999) -> None:
        self.model, self.kind, self.decay = model, kind, ema_decay
        self.weights = [] if kind == "live" else [p.detach().clone() for p in model.parameters()]
        # A bf16 average would not move: (1 - decay) · change is below its resolution. The average itself is kept in fp32.
        self.average = [w.float() for w in self.weights] if kind == "ema" else []

    @contextmanager
    def applied(self) -> Iterator[HiddenStateGPT]:
        """The model with the teacher's weights inside; no copy is made, and the student's come back even after an error."""
        parameters = list(self.model.parameters()) if self.weights else []
        students = [p.data for p in parameters]
        for parameter, weight in zip(parameters, self.weights, strict=True):
            parameter.data = weight
        try:
            yield self.model
        finally:
            for parameter, student in zip(parameters, students, strict=True):
                parameter.data = student

    def head_weight(self) -> Tensor:
        """The teacher's vocabulary rows [V, H] (last pipeline stage only); stays valid after `applied` ends."""
        with self.applied() as model:
            return model.head_weight().data

    @torch.no_grad()
    def update(self) -> None:
        """After an optimizer step: ema ← decay · ema + (1 - decay) · student; nothing for the other kinds."""
        if self.kind != "ema":
            return
        for average, weight, parameter in zip(self.average, self.weights, self.model.parameters(), strict=True):
            average.lerp_(parameter.detach().float(), 1 - self.decay)
            weight.copy_(average)

    def sharded_state_dict(self) -> dict[str, Any]:
        """megatron.core sharded state under the prefix `teacher.`; empty for a live teacher."""
        if not self.weights:
            return {}
        with self.applied() as model:
            state = model.sharded_state_dict(prefix=PREFIX)
            for part in state.values():
                if isinstance(part.data, torch.Tensor):
                    part.data = part.data.detach()  # the parameter itself gets the student's weights back
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over loaded `teacher.` weights; the fp32 average starts again from them (exact with fp32 weights, rounded with bf16)."""
        if self.weights:
            with self.applied() as model:
                model.load_state_dict({name.removeprefix(PREFIX): value for name, value in state.items()})
        self.average = [w.float() for w in self.weights] if self.kind == "ema" else []
