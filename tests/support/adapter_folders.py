"""Adapters on small models, in both forms: a checkpoint of training, and a folder that peft wrote."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from checkpoints_convert.command import single_process, whole_model
from megatron_atesd.checkpoint.base_model import AdapterRecord, base_model
from megatron_atesd.checkpoint.model_folder import find_hf, load_model_weights
from megatron_atesd.checkpoint.reading import write_folder
from megatron_atesd.distill.teacher import Teacher
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.lora import LoraSettings, adapter_parameters, add_adapters
from megatron_atesd.model.trained import trained_prefix, trained_state
from tests.support.lora_case import IDS_BS, filled


def adapted(base: Path, settings: LoraSettings) -> HiddenStateGPT:
    """An fp32 model with adapters whose B is no longer zero. Inside parallel_session."""
    model = whole_model(read_architecture(find_hf(base)), "fp32")
    load_model_weights(model, base)
    add_adapters(model, settings)
    with torch.no_grad():
        for name, factor in adapter_parameters(model).items():
            factor.copy_(filled(name, tuple(factor.shape)))
    return model


def save_checkpoint(
    folder: Path,
    base: Path,
    settings: LoraSettings,
    teacher: float | None = None,
    change: Callable[[dict[str, Any]], object] = lambda state: None,
) -> dict[str, Tensor]:
    """A checkpoint of adapters, as training writes it; its factors, by PEFT's names.

    teacher: an ema teacher is stored as well, its fp32 average these factors times that number. change: of the state, before it is written.
    """
    with single_process():
        model = adapted(base, settings)
        state: dict[str, Any] = {"model": trained_state(model, trained_prefix(model)), **AdapterRecord(settings, base_model(base)).state()}
        if teacher is not None:
            moved = Teacher(model, "ema")
            for average in moved.average:
                average.mul_(teacher)
            state["teacher"] = moved.sharded_state_dict()
        change(state)
        write_folder(folder, state, find_hf(base))
        return {name: factor.detach().clone() for name, factor in adapter_parameters(model).items()}


def save_peft(folder: Path, base: Path, settings: LoraSettings, **values: Any) -> Any:
    """A folder that peft wrote, B no longer zero; its model, for its logits. values: of LoraConfig."""
    import peft

    chosen = {"r": settings.rank, "lora_alpha": settings.alpha, "target_modules": list(settings.targets), "use_rslora": settings.rslora}
    torch.manual_seed(1)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(**chosen, task_type="CAUSAL_LM", **values))
    with torch.no_grad():
        for name, factor in model.named_parameters():
            if "lora_B" in name:
                factor.copy_(filled(name, tuple(factor.shape)))
    model.to(settings.dtype).save_pretrained(str(folder))
    return model


@torch.no_grad()
def logits_of(model: Any) -> Tensor:
    """Of IDS_BS, of one of ours or of transformers': [B, S, V] in fp32."""
    if isinstance(model, HiddenStateGPT):
        return (model(IDS_BS) @ model.head_weight().T)[..., : model.arch.vocabulary].float()
    return model.eval()(IDS_BS).logits.float()
