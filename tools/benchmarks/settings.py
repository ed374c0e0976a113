"""What the benchmark measures and on what, checked before the work."""

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.flops import DTYPES
from megatron_atesd.config import DistillConfig
from megatron_atesd.errors import ConfigError

CONTENDERS = ("ours", "naive", "plain", "trl", "ours-lora", "trl-lora")


@dataclass(frozen=True)
class Settings:
    """What to measure, and how often.

    trl_python: interpreter of an environment with trl ("" = leave it out). baselines: contenders that the ratios refer to. lora: whether
    the loss part is that of a frozen head. lora_rank, lora_alpha: of the contenders with adapters, on all projections.
    """

    contenders: Sequence[str] = ("ours", "naive", "plain", "trl")
    dtypes: Sequence[str] = ("fp32", "bf16")
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")
    threads: int = 1
    steps: int = 3
    warmup: int = 1
    repeats: int = 1
    baselines: Sequence[str] = ("plain",)
    tokens: Sequence[int] = (256, 512, 1024, 2048)
    chunk: int = DistillConfig().chunk
    trl_python: str = ""
    lora: bool = False
    lora_rank: int = 64
    lora_alpha: float = 128.0

    def check(self, out: Path | None = None) -> None:
        """Raise ConfigError for the first value that cannot be, before the work; `out` is the file to write after it."""
        for flag, given, known in (("contenders", self.contenders, CONTENDERS), ("dtypes", self.dtypes, tuple(DTYPES))):
            for value in given:
                if value not in known:
                    raise ConfigError(f"--{flag} names {value!r}; choose from {', '.join(known)}")
        for name in ("threads", "steps", "repeats", "chunk", "lora_rank"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} is {getattr(self, name)}, must be 1 or more")
        if not 0 < self.lora_alpha < float("inf"):
            raise ConfigError(f"--lora-alpha is {self.lora_alpha}, must be greater than 0")
        if self.warmup < 0:
            raise ConfigError(f"--warmup is {self.warmup}, must be 0 or more")
        if not self.tokens or min(self.tokens) < 1:
            raise ConfigError("--tokens must be numbers of response tokens of at least 1, for example 256,2048")
        for baseline in self.baselines:
            if baseline not in self.contenders:
                raise ConfigError(f"--baseline names {baseline!r}, which is not measured; choose from {', '.join(self.contenders)}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("--device is cuda, but torch finds no CUDA device; leave it out or choose cpu")
        check_out(out)


def check_out(out: Path | None) -> None:
    """Raise ConfigError, before the work, when the file to write after it cannot be."""
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise ConfigError(f"--out is {out}, must be a file in a folder that exists")


def numbers(text: str) -> list[int]:
    """`T,T` as numbers. Raises ConfigError for anything else."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ConfigError(f"--tokens is {text!r}, must be whole numbers with commas between them, for example 256,2048") from None


def environment(settings: Settings) -> Iterator[tuple[str, Any]]:
    """What the figures depend on."""
    yield from software(settings.device)
    yield from (
        (name, getattr(settings, name))
        for name in ("threads", "steps", "warmup", "repeats", "chunk", "baselines", "lora_rank", "lora_alpha")
    )


def software(device: str) -> Iterator[tuple[str, Any]]:
    """Versions, and the device's name."""
    yield from ((name, version(name)) for name in ("torch", "transformers", "megatron-core"))
    yield "device", torch.cuda.get_device_name() if device == "cuda" else _cpu_name()


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
