"""What the benchmark of rollouts measures, checked before the work."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.flops import DTYPES
from benchmarks.rollout_model import MARKS, MOST_POSITIONS, WORDS
from benchmarks.rollout_task import LONGEST
from benchmarks.settings import check_out
from benchmarks.workload import Workload
from megatron_atesd.errors import ConfigError

LENGTHS, ENGINES = ("equal", "mixed"), ("training", "vllm", "transformers")


@dataclass(frozen=True)
class RolloutSettings:
    """What to measure, and how often. tensors: tensor-parallel sizes of the training engine."""

    batches: Sequence[int] = (1, 32, 64)
    lengths: Sequence[str] = LENGTHS
    engines: Sequence[str] = ENGINES
    tensors: Sequence[int] = (1,)
    dtype: str = "fp32"
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")
    threads: int = 1
    repeats: int = 1

    def check(self, workloads: Sequence[Workload], out: Path | None = None) -> None:
        """Raise ConfigError for the first value that cannot be, before the work; `out` is the file to write after it."""
        named = {"lengths": (self.lengths, LENGTHS), "engines": (self.engines, ENGINES), "dtype": ([self.dtype], tuple(DTYPES))}
        for flag, (given, known) in named.items():
            for value in given:
                if value not in known:
                    raise ConfigError(f"--{flag} names {value!r}; choose from {', '.join(known)}")
        numbers = {"batches": self.batches, "tensors": self.tensors, "threads": [self.threads], "repeats": [self.repeats]}
        for flag, values in numbers.items():
            for value in values:
                if value < 1:
                    raise ConfigError(f"--{flag} is {value}, must be 1 or more")
        for workload in workloads:
            self._check_workload(workload)
        if self.device == "cuda" and (gpus := torch.cuda.device_count()) < max(self.tensors):
            raise ConfigError(f"--device is cuda and --tensors asks for {max(self.tensors)} GPUs, but torch finds {gpus}")
        check_out(out)

    def _check_workload(self, workload: Workload) -> None:
        if workload.prompt_tokens < MARKS or workload.vocabulary <= WORDS:
            raise ConfigError(f"workload {workload.name}: this benchmark needs prompt_tokens ≥ {MARKS} and a vocabulary > {WORDS}")
        if (total := workload.prompt_tokens + max(LONGEST, workload.response_tokens + 1)) > MOST_POSITIONS:
            raise ConfigError(f"workload {workload.name}: prompt and response have {total} tokens, may have {MOST_POSITIONS}")
        for tensor in self.tensors:
            if workload.query_groups % tensor:
                raise ConfigError(
                    f"--tensors names {tensor}, must divide query_groups of workload {workload.name}, {workload.query_groups}"
                )
