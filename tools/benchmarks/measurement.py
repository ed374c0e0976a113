"""What one measuring process is asked for, and what it hands back."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.watch import Stopwatch
from benchmarks.workload import Workload
from megatron_atesd.config import DistillConfig

LEARNING_RATE, CLIP_NORM = 5e-6, 0.1  # of every contender


@dataclass(frozen=True)
class Measurement:
    """One measurement in a process of its own.

    contender: ours, naive, plain, trl, ours-lora or trl-lora (a whole step), or fused, compiled, dense, products, each also
    with -frozen for a head that does not learn (the loss part alone, of `tokens` response tokens).
    chunk: tokens whose logits exist at one time, for those that work by chunks. lora_rank, lora_alpha, adapters: of the contenders with
    adapters, the last a file with the A that all of them start from.
    """

    contender: str
    workload: Workload
    dtype: str
    device: str
    threads: int
    steps: int
    warmup: int
    chunk: int = DistillConfig().chunk
    model: str = ""
    tokens: int = 0
    ids: dict[str, list[list[int]]] = field(default_factory=dict)
    lora_rank: int = 64
    lora_alpha: float = 128.0
    adapters: str = ""

    @property
    def lora(self) -> bool:
        """Whether adapters learn instead of all weights."""
        return self.contender.endswith("-lora")

    @property
    def name(self) -> str:
        """The measurement in words."""
        return f"{self.workload.name} {self.dtype} {self.contender}" + (f" T={self.tokens}" if self.tokens else "")

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @staticmethod
    def load(path: Path) -> "Measurement":
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Measurement(**{**values, "workload": Workload(**values["workload"])})


# One step with an optimizer update: (mean loss in nats per token, gradient norm before clipping), seconds into the stopwatch.
Step = Callable[[Stopwatch], tuple[float, float]]
