"""The models that --verify compares, in fp32: transformers' and this project's, with or without an adapter."""

import json
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor

from checkpoints_convert.command import whole_model
from checkpoints_convert.sources import Source
from megatron_atesd.checkpoint.adapter_tensors import product
from megatron_atesd.checkpoint.base_model import AdapterRecord
from megatron_atesd.checkpoint.model_folder import load_model_weights
from megatron_atesd.checkpoint.peft_config import CONFIG
from megatron_atesd.checkpoint.peft_folder import PEFT_PREFIX, WEIGHTS
from megatron_atesd.checkpoint.reading import read_folder
from megatron_atesd.errors import ConversionError
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.lora import adapter_parameters, add_adapters
from megatron_atesd.model.trained import trained_state


def transformers_model(folder: Path) -> Any:
    """What transformers makes of a Hugging Face folder. Raises ConversionError."""
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        raise ConversionError(f"{folder}: transformers cannot load the model ({error})") from error


@torch.no_grad()
def transformers_model_of(source: Source, hf_files: Path) -> Any:
    """The model that config.json of `hf_files` describes, with the weights of `source`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(hf_files, trust_remote_code=False)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    weights: dict[str, Tensor] = dict(model.named_parameters())
    for piece in source.pieces():
        for (name, (start, stop)), part in zip(piece.sources.items(), source.parts(piece), strict=True):
            weights[name][start:stop] = part
    return model


@torch.no_grad()
def with_peft(model: Any, folder: Path) -> Any:
    """transformers' `model`, with the factors in the file of a PEFT folder merged by the paths that their names say."""
    values, factors = json.loads((folder / CONFIG).read_text(encoding="utf-8")), load_file(folder / WEIGHTS)
    scaling = values["lora_alpha"] / (sqrt(values["r"]) if values.get("use_rslora") else values["r"])
    for name, b in factors.items():
        if name.endswith(".lora_B.weight"):
            path = name.removeprefix(PEFT_PREFIX).removesuffix(".lora_B.weight")
            a = factors[name.replace(".lora_B.", ".lora_A.")]
            model.get_submodule(path).weight += b.float() @ a.float() * scaling
    return model


@torch.no_grad()
def megatron_model(folder: Path, prefix: str, architecture: Architecture) -> HiddenStateGPT:
    """The weights under `prefix` in a Megatron folder. Raises CheckpointError."""
    model = whole_model(architecture, "fp32")
    loaded = read_folder(folder, model.sharded_state_dict(prefix=prefix))
    model.load_state_dict({name.removeprefix(prefix): value for name, value in loaded.items() if name.startswith(prefix)})
    return model


@torch.no_grad()
def adapted_model(checkpoint: Path, prefix: str, record: AdapterRecord, base: Path, architecture: Architecture) -> HiddenStateGPT:
    """`base` with the adapters under `prefix` in a checkpoint. Raises CheckpointError, ConversionError."""
    model = whole_model(architecture, "fp32")
    load_model_weights(model, base)
    add_adapters(model, replace(record.settings, dropout=0.0, dtype=torch.float32))
    loaded = read_folder(checkpoint, trained_state(model, prefix))
    for name, factor in adapter_parameters(model).items():
        factor.copy_(loaded[prefix + name])
    return model


@torch.no_grad()
def merged_model(model: HiddenStateGPT) -> HiddenStateGPT:
    """The same model, its adapters in the weights instead, in the layout of the fused products."""
    for module in model.modules():
        if hasattr(module, "lora"):
            layer: Any = module
            layer.weight += torch.cat([_blocks(layer, name) for name in layer.widths], dim=1).flatten(0, 1).to(layer.weight.device)
            layer.lora_on = False
    return model


def _blocks(layer: Any, name: str) -> Tensor:
    """What an adapter adds to the rows of its projection: [groups, rows of it in each, inputs], on the CPU as in the conversion."""
    shape = layer.groups, layer.widths[name], layer.weight.shape[1]
    if name not in layer.lora:
        return torch.zeros(shape)
    adapter = layer.lora[name]
    a, b = (cast("Tensor", getattr(adapter, factor).weight).cpu() for factor in ("lora_A", "lora_B"))
    return product(a, b, adapter.settings).view(shape)


@torch.no_grad()
def rounded(model: Any, dtype: torch.dtype, only: str = "") -> Any:
    """The same model, its parameters (those with `only` in their names) rounded; the rotary frequencies, no parameters, stay in fp32."""
    for name, parameter in model.named_parameters():
        if only in name:
            parameter.copy_(parameter.to(dtype))
    return model
