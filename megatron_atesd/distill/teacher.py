"""The teacher's weights, sharded like the model: the start's (initial), a moving average (ema), the student's at the last refresh
(refreshed), or its own (live).

Only what learns can differ from the student: with adapters on a frozen base, the teacher's are copies of adapters, and a run that began
with new ones needs none for `initial`, whose passes leave them out.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from torch import Tensor

from megatron_atesd.config import Precision
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.lora import adapters_off
from megatron_atesd.model.trained import has_adapters, trained_parameters, trained_state

PREFIX = "teacher."
Kind = Literal["initial", "ema", "live", "refreshed"]


class Teacher:
    """Weights beside the student's, put into the same modules by reference for the length of a pass.

    offload: keep them in host memory, pinned where there is CUDA; a pass gets copies on the device, which end with it.
    precision: of the teacher's passes. new_adapters: the model's adapters, if it has any, changed nothing at the start.
    """

    def __init__(
        self,
        model: HiddenStateGPT,
        kind: Kind,
        ema_decay: float = 0.999,
        offload: bool = False,
        precision: Precision | None = None,
        new_adapters: bool = True,
    ) -> None:
        self.model, self.kind, self.decay, self.offload = model, kind, ema_decay, offload
        self.precision: Precision | None = precision
        self.is_base = kind == "initial" and new_adapters and has_adapters(model)
        # What it has weights of its own for, and these, one for each.
        self.parameters = [] if kind == "live" or self.is_base else trained_parameters(model)
        self.weights = [self._keep(p, p.dtype) for p in self.parameters]
        # A bf16 average would not move: (1 - decay) · change is below its resolution. The average itself is kept in fp32;
        # fp32 weights are their own average, in one place.
        kept = self.weights if kind == "ema" else []
        self.average = [w if w.dtype == torch.float32 else self._keep(w, torch.float32) for w in kept]

    def _keep(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        place: dict[str, Any] = {"device": "cpu", "pin_memory": torch.cuda.is_available()} if self.offload else {}
        return torch.empty_like(tensor, dtype=dtype, requires_grad=False, **place).copy_(tensor.detach())

    def _bring(self, kept: Tensor, device: torch.device) -> Tensor:
        """The tensor itself; with offload a copy on the device, whose transfer only the device waits for."""
        return kept.to(device, non_blocking=True, copy=True) if self.offload else kept

    @contextmanager
    def applied(self) -> Iterator[HiddenStateGPT]:
        """The model with the teacher's weights and precision; the student's come back even after an error, where they were."""
        students = [p.data for p in self.parameters]
        try:
            for parameter, weight in zip(self.parameters, self.weights, strict=True):
                parameter.data = self._bring(weight, parameter.device)
            with self.model.computing_in(self.precision), adapters_off(self.model) if self.is_base else nullcontext():
                yield self.model
        finally:
            for parameter, student in zip(self.parameters, students, strict=True):
                parameter.data = student

    def head_weight(self) -> Tensor:
        """The teacher's vocabulary rows [V, H] (last pipeline stage only), alone on the device; stays valid outside `applied`."""
        head = self.model.head_weight()
        own = [weight for parameter, weight in zip(self.parameters, self.weights, strict=True) if parameter is head]
        return self._bring(own[0], head.device) if own else head.data

    @torch.no_grad()
    def update(self) -> None:
        """After an optimizer step: ema ← decay · ema + (1 - decay) · student; nothing for the other kinds."""
        if self.kind != "ema":
            return
        for average, weight, parameter in zip(self.average, self.weights, self.parameters, strict=True):
            moved = self._bring(average, parameter.device).lerp_(parameter.detach().float(), 1 - self.decay)
            average.copy_(moved)
            if weight is not average:
                weight.copy_(moved)

    @torch.no_grad()
    def refresh(self) -> None:
        """The teacher's weights become the student's: for the kind refreshed, when `train/refresh.py` says so."""
        for weight, parameter in zip(self.weights, self.parameters, strict=True):
            weight.copy_(parameter)

    def sharded_state_dict(self) -> dict[str, Any]:
        """megatron.core sharded state under the prefix `teacher.`: an ema teacher's fp32 average, another's weights.

        Empty for a live teacher and for the base under new adapters; of an offloaded one copies.
        """
        if not self.weights:
            return {}
        state, saved = trained_state(self.model, PREFIX), self._saved()
        for part in nested_values(state):
            if isinstance(part.data, Tensor):
                # A process that writes in the background shares pinned memory, and would see the next updates: it gets a copy.
                part.data = saved[part.data].clone() if self.offload else saved[part.data]
                if isinstance(part, ShardedTensor):
                    part.dtype = part.data.dtype
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `sharded_state_dict` saved; the weights of a pass are the average, rounded to the model's type."""
        if not self.weights:
            return
        saved = self._saved()
        for parameter, value in _pairs(trained_state(self.model, PREFIX), state):
            saved[parameter].copy_(value)
        for average, weight in zip(self.average, self.weights, strict=False):
            if weight is not average:
                weight.copy_(average)

    def _saved(self) -> dict[Tensor, Tensor]:
        """What a checkpoint holds of the teacher, by the model's parameter in whose place it stands."""
        return dict(zip(self.parameters, self.average or self.weights, strict=True))


def _pairs(parts: Mapping[str, Any], loaded: Mapping[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Each parameter of the model's sharded state with the tensor that was loaded under its names."""
    for name, part in parts.items():
        if isinstance(part, Mapping):
            yield from _pairs(part, loaded[name])
        elif isinstance(part.data, Tensor):
            yield part.data, loaded[name]
