"""What tools/bench_gpu.py is asked to measure, checked before the work: one model shape under one or several sets of settings."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.update import Updates
from megatron_atesd.config import (
    layout_problems,
    load_config,
    method_problems,
    parallel_problems,
    precision_problems,
    refuse,
    section_problems,
)
from megatron_atesd.config.lora_rules import lora_problems
from megatron_atesd.errors import ConfigError
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.supported import check_fp8
from megatron_atesd.plan.planned_update import Lengths
from megatron_atesd.plan.published import QWEN3
from megatron_atesd.train.checks import check_compiler

SHAPES = {"tiny": Architecture("qwen3", 64, 128, 2, 4, 2, 16, 512, 4096, 1e6, 1e-6, tied=True, qk_norm=True), **QWEN3}
SECTIONS = ("lora", "parallel", "data", "rollout", "distill")


def variants(
    shape: str, settings: Sequence[str], also: Sequence[str], tokens: Mapping[str, int], repeats: tuple[int, int], world: int
) -> list[Updates]:
    """The settings alone, then with each of `also` (settings in one string) besides.

    tokens: lengths of --student-tokens and --teacher-tokens by name; repeats: measured updates and those before them.
    Raises ConfigError for whatever cannot be measured.
    """
    if shape not in SHAPES:
        raise ConfigError(f"--shape is {shape!r}; choose from {', '.join(SHAPES)}")
    for name, value, least in (
        ("--steps", repeats[0], 1),
        ("--warmup", repeats[1], 0),
        *((f"--{n}-tokens", v, 1) for n, v in tokens.items()),
    ):
        if value < least:
            raise ConfigError(f"{name} is {value}, must be {least} or more")
    if tokens["teacher"] < tokens["student"]:
        raise ConfigError(f"--teacher-tokens is {tokens['teacher']}, must be at least --student-tokens, {tokens['student']}")
    return [_variant(shape, settings, more, tokens, repeats, world) for more in ("", *also)]


def _variant(shape: str, settings: Sequence[str], more: str, tokens: Mapping[str, int], repeats: tuple[int, int], world: int) -> Updates:
    defaults = Path(__file__).parent / "update.yaml"
    config, arch = load_config(["--config", str(defaults), *settings, *shlex.split(more)]), SHAPES[shape]
    refuse(section_problems(config, SECTIONS) or [*parallel_problems(config, world), *method_problems(config), *lora_problems(config)])
    refuse(layout_problems(config.parallel, world, arch.shape))
    refuse(list(precision_problems(config)))
    check_fp8(config, arch)
    check_compiler(config.distill.compile)
    lengths = Lengths(tokens["student"], tokens["teacher"], config.rollout.max_new_tokens)
    return Updates(more or shape, config, arch, lengths, world, *repeats)
