"""Evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn import Module


@contextmanager
def evaluation_mode(model: Module) -> Iterator[None]:
    """The whole model is in evaluation mode inside. Afterwards, also after an exception, each of its modules is in its mode from before."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
