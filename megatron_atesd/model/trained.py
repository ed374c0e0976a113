"""What of a model learns: all weights, or the adapters on a frozen base (model/lora.py)."""

from collections.abc import Mapping
from typing import Any

import torch
from megatron.core.utils import make_sharded_tensor_for_checkpoint, make_tp_sharded_tensor_for_checkpoint
from torch import Tensor

from megatron_atesd.config import LoraConfig
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.lora import LoraSettings, adapter_parameters
from megatron_atesd.model.megatron_config import DTYPES

MODEL_PREFIX, ADAPTER_PREFIX = "model.", "adapters."


def lora_settings(config: LoraConfig, model_dtype: str) -> LoraSettings:
    """The adapters of a run; config.rank is above 0."""
    alpha = 2.0 * config.rank if config.alpha is None else config.alpha
    dtype = DTYPES[config.dtype or model_dtype]
    return LoraSettings(config.rank, alpha, config.dropout, tuple(config.targets), config.rslora, dtype)


def has_adapters(model: HiddenStateGPT) -> bool:
    """Whether only adapters learn."""
    return bool(adapter_parameters(model))


def trained_parameters(model: HiddenStateGPT) -> list[torch.nn.Parameter]:
    """This rank's, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def trained_dtype(model: HiddenStateGPT) -> torch.dtype:
    """The one type of all that learns."""
    (dtype,) = {parameter.dtype for parameter in trained_parameters(model)}
    return dtype


def trained_prefix(model: HiddenStateGPT) -> str:
    """What stands before the names of the student's trained tensors in a checkpoint."""
    return ADAPTER_PREFIX if has_adapters(model) else MODEL_PREFIX


def trained_state(model: HiddenStateGPT, prefix: str) -> dict[str, Any]:
    """megatron.core's sharded state of what learns, its tensors the parameters themselves; the same at every TP × PP × VP.

    Of an adapter the stored tensors are PEFT's own: `<prefix>model.layers.3.self_attn.q_proj.lora_A.weight`, whole.
    """
    adapters = adapter_parameters(model)
    if not adapters:
        return model.sharded_state_dict(prefix=prefix)
    return {prefix + name: _sharded(prefix + name, parameter) for name, parameter in adapters.items()}


def _sharded(key: str, parameter: Any) -> Any:
    if parameter.tensor_model_parallel:
        return make_tp_sharded_tensor_for_checkpoint(parameter, key, tp_axis=parameter.partition_dim)
    return make_sharded_tensor_for_checkpoint(parameter, key)


@torch.no_grad()
def load_trained_state(model: HiddenStateGPT, state: Mapping[str, Any]) -> None:
    """Take over what `trained_state` with `trained_prefix` saved. Raises RuntimeError for a state with other names."""
    prefix, adapters = trained_prefix(model), adapter_parameters(model)
    mine: dict[str, Tensor] = {name.removeprefix(prefix): value for name, value in state.items()}
    if not adapters:
        model.load_state_dict(mine)
        return
    if mine.keys() != adapters.keys():
        raise RuntimeError(f"state of other adapters: {', '.join(sorted(mine.keys() ^ adapters.keys()))}")
    for name, parameter in adapters.items():
        parameter.copy_(mine[name])
