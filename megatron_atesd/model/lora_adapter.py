"""One projection's LoRA: its two factors, how they start, and the dropout of its input. Layers multiply by them: lora_layers.py."""

import hashlib
import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from torch import Tensor

from megatron_atesd.config import LORA_TARGETS
from megatron_atesd.errors import ConfigError


@dataclass(frozen=True)
class LoraSettings:
    """What PEFT's LoraConfig calls r, lora_alpha, lora_dropout, target_modules and use_rslora.

    dropout: of the adapters' input while training. dtype: of A and B, and of what they compute; PEFT keeps them in fp32 too.
    Raises ConfigError for values that are none.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = LORA_TARGETS
    rslora: bool = False
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"LoRA rank is {self.rank}, must be at least 1")
        if not 0 < self.alpha < math.inf:
            raise ConfigError(f"LoRA alpha is {self.alpha}, must be greater than 0")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"LoRA dropout is {self.dropout}, must be from 0 to below 1")
        unknown = [target for target in self.targets if target not in LORA_TARGETS]
        if unknown or not self.targets:
            raise ConfigError(f"LoRA targets are {list(self.targets)}; give one or more of {', '.join(LORA_TARGETS)}")

    @property
    def scaling(self) -> float:
        """s of W + s·B·A."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class Factor(torch.nn.Module):
    """A or B. It is read by a call: megatron.core waits before a module's forward for weights that other ranks have updated."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self) -> Tensor:
        return self.weight


class Adapter(torch.nn.Module):
    """A and B of one projection on this TP rank: lora_A.weight [rank, inputs], lora_B.weight [outputs, rank].

    divided: which of them is this rank's part of a whole (its partition_dim says along which dimension), where the other is whole.
    group: the TP ranks. Without values until `reset`.
    """

    def __init__(self, inputs: int, outputs: int, divided: str, settings: LoraSettings, base: Any, group: Any) -> None:
        super().__init__()
        self.settings, self.divided, self.group = settings, divided, group
        place: Any = {"device": base.weight.device, "dtype": settings.dtype}
        self.lora_A = Factor(torch.empty(settings.rank, inputs, **place))
        self.lora_B = Factor(torch.empty(outputs, settings.rank, **place))
        for name, dimension in (("lora_A", 1), ("lora_B", 0)):
            weight: Any = getattr(self, name).weight
            set_tensor_model_parallel_attributes(weight, name == divided, dimension if name == divided else -1, 1)
            weight.sequence_parallel = name != divided and base.config.sequence_parallel

    def reset(self, seed: str) -> None:
        """As PEFT: A kaiming-uniform (a = √5), B zero. A is drawn whole from `seed` and then divided: the same at every TP × PP.

        On the meta device, where a dry run has no values, nothing is drawn.
        """
        weight = self.lora_A.weight
        if weight.is_meta:
            return
        ranks, rank = (self.group.size(), self.group.rank()) if self.divided == "lora_A" else (1, 0)
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big"))
        whole = torch.empty(len(weight), weight.shape[1] * ranks)
        torch.nn.init.kaiming_uniform_(whole, a=math.sqrt(5), generator=generator)
        with torch.no_grad():
            weight.copy_(whole.chunk(ranks, dim=1)[rank])
            self.lora_B.weight.zero_()

    def dropped(self, x: Tensor, shared: bool) -> Tensor:
        """x in the adapter's dtype, in training without a share. TP ranks drop the same of inputs that they share (`shared`); of its own,
        each by megatron.core's generator."""
        x = x.to(self.settings.dtype)
        if not self.training or not self.settings.dropout:
            return x
        if shared:
            return F.dropout(x, self.settings.dropout)
        with cast("Any", get_cuda_rng_tracker()).fork():
            return F.dropout(x, self.settings.dropout)
