"""The logits gate: a Megatron model and the Hugging Face model on the other side of its conversion must give the same logits in fp32."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints_convert.command import TOLERANCE
from checkpoints_convert.models import megatron_model, rounded, transformers_model, with_peft
from megatron_atesd.data.tokenizer import TOKENIZER_FILES, load_tokenizer
from megatron_atesd.errors import ConversionError
from megatron_atesd.logs import tell
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.vocabulary import whole_logits

TEXT = "A train leaves at 8:15 and needs 2 hours 50 minutes, so it arrives at 11:05. The answer is \\boxed{11:05}."
LONGEST = 64  # tokens of a sequence

MakeTheirs = Callable[[], Any]
MakeOurs = Callable[[], HiddenStateGPT]


def verify(theirs: MakeTheirs, ours: MakeOurs, hf_files: Path, tolerance: float = TOLERANCE) -> None:
    """Raises ConversionError when the logits of both models differ by more than `tolerance` anywhere; see `largest_difference`."""
    difference = largest_difference(theirs, ours, hf_files)
    if not difference <= tolerance:  # also for nan
        raise ConversionError(
            f"verification failed: logits differ by up to {difference:.3g}, more than --tolerance {tolerance:g}; nothing was kept. "
            "A damaged file or a config.json of another model does this: get both again"
        )


def compare(megatron: Path, prefix: str, hf: Path, dtype: torch.dtype) -> float:
    """The same of the weights `prefix` of a Megatron folder and of the Hugging Face folder `hf`, both rounded to `dtype`."""
    return largest_difference(*both(megatron, prefix, hf, dtype), hf)


def both(megatron: Path, prefix: str, hf: Path, dtype: torch.dtype, adapter: Path | None = None) -> tuple[MakeTheirs, MakeOurs]:
    """What `verify` asks for, of two folders. adapter: a PEFT folder that is merged into the model of transformers first."""
    architecture = read_architecture(hf)

    def theirs() -> Any:
        model = transformers_model(hf)
        return rounded(model if adapter is None else with_peft(model, adapter), dtype)

    return theirs, lambda: rounded(megatron_model(megatron, prefix, architecture), dtype)


def largest_difference(theirs: MakeTheirs, ours: MakeOurs, hf_files: Path) -> float:
    """Largest absolute difference of the logits of a model of transformers and of one of ours, on a text (when hf_files has a tokenizer)
    and on random ids.

    Reports it with top-1 agreement. One model after the other is in memory. Inside `parallel_session` of one process.
    """
    sequences = list(_sequences(hf_files, read_architecture(hf_files)))
    expected = _transformers_logits(theirs, sequences)
    found = _megatron_logits(ours, sequences)
    differences = [float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)]
    agreeing = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in zip(found, expected, strict=True))
    positions = sum(ids.shape[1] for ids in sequences)
    largest = float(torch.tensor(differences).max())  # keeps nan, unlike max()
    tell(f"verify: largest logit difference {largest:.3g}, top-1 equal at {agreeing} of {positions} positions")
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
def _transformers_logits(make: MakeTheirs, sequences: list[Tensor]) -> list[Tensor]:
    device = torch.cuda.current_device()
    model = make().eval().to(device)
    return [model(ids.to(device)).logits[0].float().cpu() for ids in sequences]


@torch.no_grad()
def _megatron_logits(make: MakeOurs, sequences: list[Tensor]) -> list[Tensor]:
    model, device = make(), torch.cuda.current_device()
    return [whole_logits(model, model(ids.to(device))[0]).cpu() for ids in sequences]
