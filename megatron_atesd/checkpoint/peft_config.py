"""adapter_config.json of a PEFT folder ↔ LoraSettings. What adapters here cannot be is refused under its name there."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_atesd.config import LORA_TARGETS
from megatron_atesd.data.hf_json import read_json_object
from megatron_atesd.errors import ConfigError, ConversionError
from megatron_atesd.model.lora import LoraSettings

CONFIG = "adapter_config.json"
_READ = ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "init_lora_weights")
# Where the adapter came from and how it began: nothing that a trained one computes with.
_HISTORY = (
    *("base_model_name_or_path", "revision", "task_type", "inference_mode", "auto_mapping", "peft_version", "megatron_core"),
    *("corda_config", "eva_config", "loftq_config", "lora_ga_config"),
    *("ensure_weight_tying", "qalora_group_size"),  # of modules_to_save and use_qalora, which are refused themselves
)
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal", "mica")  # PEFT's other starts also change the base
_LARGEST = 2**31
INSTEAD = "merge it into its base with peft (merge_and_unload), and convert the whole model"


@dataclass(frozen=True)
class PeftConfig:
    """settings: all but the dtype, which the tensors have. base: what the folder says of its base model; may be empty."""

    settings: LoraSettings
    base: str


def read_peft_config(folder: Path) -> PeftConfig:
    """What a PEFT folder says of its adapter. Raises ConversionError naming the value that adapters here cannot have."""
    config = folder / CONFIG
    if not config.is_file():
        raise ConversionError(f"{folder}: no {CONFIG} here; give the folder of a LoRA adapter that peft saved")
    values = read_json_object(config)
    _refuse_other_kinds(config, values)
    targets = _targets(config, values.get("target_modules"))
    rslora = values.get("use_rslora", False)
    if not isinstance(rslora, bool):
        raise ConversionError(f"{config}: use_rslora is {rslora!r:.80}, must be true or false; write one of them")
    rank = _number(config, values, "r", whole=True)
    alpha, dropout = (float(_number(config, values, name)) for name in ("lora_alpha", "lora_dropout"))
    try:
        settings = LoraSettings(int(rank), alpha, dropout, targets, rslora)
    except ConfigError as error:
        raise ConversionError(f"{config}: {error}; get the adapter again") from None
    return PeftConfig(settings, str(values.get("base_model_name_or_path") or ""))


def _refuse_other_kinds(config: Path, values: Mapping[str, Any]) -> None:
    if (kind := values.get("peft_type")) != "LORA":
        raise ConversionError(f"{config}: peft_type is {kind!r:.80}, must be 'LORA'; {INSTEAD}")
    start = values.get("init_lora_weights", True)
    if (start.lower() if isinstance(start, str) else start) not in _PLAIN_STARTS:
        raise ConversionError(f"{config}: init_lora_weights is {start!r:.80}, which also changes the base; {INSTEAD}")
    for name, value in values.items():
        neutral = not value or (name, value) == ("bias", "none")
        if name not in (*_READ, *_HISTORY) and not neutral:
            raise ConversionError(f"{config}: {name} is {value!r:.80}, which adapters here do not have; {INSTEAD}")


def _targets(config: Path, targets: Any) -> tuple[str, ...]:
    """In one order, whatever the file's."""
    rule = f"must be a list of {', '.join(LORA_TARGETS)}"
    if isinstance(targets, str):
        raise ConversionError(f"{config}: target_modules is the pattern {targets!r:.80}, {rule}; list the projections that it means")
    if not isinstance(targets, list) or not targets:
        raise ConversionError(f"{config}: target_modules is {targets!r:.80}, {rule}; list the projections that have an adapter")
    if unknown := [target for target in targets if target not in LORA_TARGETS]:
        raise ConversionError(f"{config}: target_modules holds {unknown[0]!r:.80}, {rule}; if that has an adapter, {INSTEAD}")
    return tuple(target for target in LORA_TARGETS if target in targets)


def _number(config: Path, values: Mapping[str, Any], name: str, whole: bool = False) -> int | float:
    value = values.get(name, 0.0 if name == "lora_dropout" else None)
    if type(value) not in ((int,) if whole else (int, float)) or not abs(value) < _LARGEST:
        kind = "whole number" if whole else "number"
        raise ConversionError(f"{config}: {name} is {value!r:.80}, must be a {kind} below {_LARGEST}; get the adapter again")
    return value


def peft_config(settings: LoraSettings, base: str) -> dict[str, Any]:
    """The values of an adapter_config.json with which peft loads such adapters of a causal language model. base: the model's folder."""
    return {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(settings.alpha) if settings.alpha.is_integer() else settings.alpha,  # vLLM reads a whole number
        "lora_dropout": settings.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": settings.rank,
        "target_modules": list(settings.targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": settings.rslora,
    }
