"""The logits gate: a Megatron model and the Hugging Face folder on the other side of its conversion must give the same logits in fp32."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints_convert.command import TOLERANCE, whole_model
from checkpoints_convert.output import say
from megatron_atesd.data.tokenizer import TOKENIZER_FILES, load_tokenizer
from megatron_atesd.errors import ConversionError
from megatron_atesd.model.qwen3 import HiddenStateGPT
from megatron_atesd.model.vocabulary import whole_logits

TEXT = "A train leaves at 8:15 and needs 2 hours 50 minutes, so it arrives at 11:05. The answer is \\boxed{11:05}."
LONGEST = 64  # tokens of a sequence


def verify(model: HiddenStateGPT, folder: Path, tolerance: float = TOLERANCE) -> None:
    """Raises ConversionError when the logits of `model` and `folder` differ by more than `tolerance` anywhere."""
    difference = compare(model, folder)
    if not difference <= tolerance:  # also for nan
        raise ConversionError(
            f"verification failed: logits differ by up to {difference:.3g}, more than --tolerance {tolerance:g}; nothing was kept. "
            "A damaged file or a config.json of another model does this: get both again"
        )


def compare(model: HiddenStateGPT, folder: Path) -> float:
    """Largest absolute difference of the logits of `model` (TP = PP = 1) and of transformers on `folder`; reports it with top-1 agreement.

    Both sides compute in fp32, from weights rounded to the parameter type of `model`, on a short text (when the folder has a tokenizer)
    and on random ids. Needs memory for one more copy of the weights in fp32.
    """
    sequences = list(_sequences(model, folder))
    theirs = _transformers_logits(model, folder, sequences)
    ours = _megatron_logits(model, sequences)
    differences = [float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)]
    agreeing = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in zip(ours, theirs, strict=True))
    positions = sum(ids.shape[1] for ids in sequences)
    largest = float(torch.tensor(differences).max())  # keeps nan, unlike max()
    say(f"verify: largest logit difference {largest:.3g}, top-1 equal at {agreeing} of {positions} positions")
    return largest


def _sequences(model: HiddenStateGPT, folder: Path) -> Iterator[Tensor]:
    """Token ids [1, S] to compare on."""
    vocabulary, longest = model.arch.vocabulary, min(LONGEST, model.arch.max_positions)
    text = _text_ids(folder, vocabulary)[:longest]
    if text:
        yield torch.tensor([text])
    generator = torch.Generator().manual_seed(0)
    yield torch.randint(vocabulary, (1, longest), generator=generator)


def _text_ids(folder: Path, vocabulary: int) -> list[int]:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return []
    return load_tokenizer(folder, vocabulary).encode(TEXT)


@torch.no_grad()
def _transformers_logits(model: HiddenStateGPT, folder: Path, sequences: list[Tensor]) -> list[Tensor]:
    from transformers import AutoModelForCausalLM

    try:
        reference: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        raise ConversionError(f"{folder}: transformers cannot load the model ({error})") from error
    for parameter in reference.parameters():  # parameters only: the rotary frequencies stay in fp32
        parameter.copy_(parameter.to(model.config.params_dtype))
    device = torch.cuda.current_device()
    reference.to(device)
    return [reference(ids.to(device)).logits[0].float().cpu() for ids in sequences]


@torch.no_grad()
def _megatron_logits(model: HiddenStateGPT, sequences: list[Tensor]) -> list[Tensor]:
    if model.config.params_dtype != torch.float32:
        twin = whole_model(model.arch, "fp32")
        twin.load_state_dict(model.state_dict())
        model = twin
    device = torch.cuda.current_device()
    return [whole_logits(model, model(ids.to(device), None, None)[0]).cpu() for ids in sequences]
