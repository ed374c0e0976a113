"""The logits gate: a Megatron model and the Hugging Face folder on the other side of its conversion must give the same logits in fp32."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints_convert.command import TOLERANCE, whole_model
from checkpoints_convert.output import say
from megatron_atesd.checkpoint.reading import read_folder
from megatron_atesd.data.tokenizer import TOKENIZER_FILES, load_tokenizer
from megatron_atesd.errors import ConversionError
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.vocabulary import whole_logits

TEXT = "A train leaves at 8:15 and needs 2 hours 50 minutes, so it arrives at 11:05. The answer is \\boxed{11:05}."
LONGEST = 64  # tokens of a sequence


def verify(megatron: Path, prefix: str, hf: Path, dtype: torch.dtype, tolerance: float = TOLERANCE) -> None:
    """Raises ConversionError when the logits of both folders differ by more than `tolerance` anywhere; see `compare`."""
    difference = compare(megatron, prefix, hf, dtype)
    if not difference <= tolerance:  # also for nan
        raise ConversionError(
            f"verification failed: logits differ by up to {difference:.3g}, more than --tolerance {tolerance:g}; nothing was kept. "
            "A damaged file or a config.json of another model does this: get both again"
        )


def compare(megatron: Path, prefix: str, hf: Path, dtype: torch.dtype) -> float:
    """Largest absolute difference of the logits of the weights `prefix` of a Megatron folder and of transformers on the folder `hf`.

    Reports it with top-1 agreement. Both sides compute in fp32, from weights rounded to `dtype`, on a text (when the folder has a
    tokenizer) and on random ids; one model after the other is in memory. Inside `parallel_session` of one process.
    """
    architecture = read_architecture(hf)
    sequences = list(_sequences(hf, architecture))
    theirs = _transformers_logits(hf, dtype, sequences)
    ours = _megatron_logits(megatron, prefix, architecture, dtype, sequences)
    differences = [float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)]
    agreeing = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in zip(ours, theirs, strict=True))
    positions = sum(ids.shape[1] for ids in sequences)
    largest = float(torch.tensor(differences).max())  # keeps nan, unlike max()
    say(f"verify: largest logit difference {largest:.3g}, top-1 equal at {agreeing} of {positions} positions")
    return largest


def _sequences(folder: Path, architecture: Architecture) -> Iterator[Tensor]:
    """Token ids [1, S] to compare on."""
    vocabulary, longest = architecture.vocabulary, min(LONGEST, architecture.max_positions)
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
def _transformers_logits(folder: Path, dtype: torch.dtype, sequences: list[Tensor]) -> list[Tensor]:
    from transformers import AutoModelForCausalLM

    try:
        reference: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        raise ConversionError(f"{folder}: transformers cannot load the model ({error})") from error
    _round(reference, dtype)
    device = torch.cuda.current_device()
    reference.to(device)
    return [reference(ids.to(device)).logits[0].float().cpu() for ids in sequences]


@torch.no_grad()
def _megatron_logits(folder: Path, prefix: str, architecture: Architecture, dtype: torch.dtype, sequences: list[Tensor]) -> list[Tensor]:
    model = whole_model(architecture, "fp32")
    loaded = read_folder(folder, model.sharded_state_dict(prefix=prefix))
    model.load_state_dict({name.removeprefix(prefix): value for name, value in loaded.items() if name.startswith(prefix)})
    _round(model, dtype)
    device = torch.cuda.current_device()
    return [whole_logits(model, model(ids.to(device))[0]).cpu() for ids in sequences]


def _round(model: torch.nn.Module, dtype: torch.dtype) -> None:
    for parameter in model.parameters():  # parameters only: the rotary frequencies stay in fp32
        parameter.copy_(parameter.to(dtype))
