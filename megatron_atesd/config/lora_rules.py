"""Rules between the settings of section lora, and between them and others."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from megatron_atesd.config.schema import LORA_TARGETS, LoraConfig, TrainConfig


def lora_problems(config: TrainConfig) -> Iterator[str]:
    """The broken ones; every single number keeps its bound."""
    lora = config.lora
    if not lora.rank:
        off, given = asdict(LoraConfig()), asdict(lora)
        for name in given:
            if given[name] != off[name]:
                yield f"lora.{name} is {given[name]}, but lora.rank is 0, which trains all weights; set lora.rank to 1 or more"
        return
    unknown = [target for target in lora.targets if target not in LORA_TARGETS]
    if unknown or not lora.targets:
        yield f"lora.targets is {lora.targets}, must be one or more of {', '.join(LORA_TARGETS)}"
    elif len(set(lora.targets)) < len(lora.targets):
        yield f"lora.targets is {lora.targets}, where a projection comes twice; remove the second"
    if lora.start and not Path(lora.start).is_dir():
        yield f"lora.start is {lora.start}, which is no folder; give a PEFT folder; a run that goes on needs none"
    if lora.dtype == "bf16" and config.model.dtype == "fp32":
        yield "lora.dtype is bf16, but model.dtype is fp32; set lora.dtype to null"
