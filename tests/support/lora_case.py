"""LoRA written out by hand: one adapter a Hugging Face projection, merged into its weight, gradients by autograd through the merge."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

IDS_BS = torch.tensor([[5, 17, 60, 2, 33, 8, 41, 9], [3, 3, 50, 12, 7, 29, 0, 44]])


def loss_of(logits_BSV: Tensor) -> Tensor:
    """A sum that tells every position and every entry of the vocabulary apart."""
    return (logits_BSV * loss_weights(logits_BSV.shape)).sum()


def loss_weights(shape: tuple[int, ...]) -> Tensor:
    """Of the logits in loss_of."""
    return torch.arange(math.prod(shape)).view(shape).cos()


def filled(name: str, shape: tuple[int, ...]) -> Tensor:
    """Values for the adapter parameter that PEFT calls `name`: another B than zero, from which A has a gradient."""
    generator = torch.Generator().manual_seed(sum(ord(letter) * place for place, letter in enumerate(name)))
    return torch.randn(shape, generator=generator) * 0.1


def merged_reference(folder: Path, adapters: Mapping[str, Tensor], scaling: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits [B, S, V] of IDS_BS, and the gradient of loss_of them in every A and B."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    leaves = {name: value.detach().clone().requires_grad_() for name, value in adapters.items()}
    weights: dict[str, Tensor] = dict(model.named_parameters())
    for name in leaves:
        if name.endswith(".lora_A.weight"):
            projection = name.removesuffix(".lora_A.weight")
            weights[f"{projection}.weight"] = (
                weights[f"{projection}.weight"] + scaling * leaves[f"{projection}.lora_B.weight"] @ leaves[name]
            )
    logits_BSV = torch.func.functional_call(model, weights, (IDS_BS,)).logits
    gradients = torch.autograd.grad(loss_of(logits_BSV), list(leaves.values()))
    return logits_BSV.detach(), dict(zip(leaves, gradients, strict=True))


def assert_same(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 1e-4) -> None:
    """The same names, and values that are close, measured by the largest of each tensor; none is all zero."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        largest = float(value.abs().max())
        assert largest > 0, name
        torch.testing.assert_close(got[name], value, rtol=0, atol=tolerance * largest, msg=lambda text, name=name: f"{name}: {text}")
