"""Lets megatron.core run without CUDA: what it asks of a GPU is answered by the CPU, or by the meta device for a dry run.

`install()` acts only where CUDA is absent, once a process. It covers four things:
device queries and streams, tensor factories and moves to "cuda", the CUDA random-number state, and the kernel that clips gradients.
"""

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")


def install(stand_in: torch.device = _CPU) -> None:
    """Route megatron.core's CUDA use to the device `stand_in`; does nothing with CUDA or when already installed."""
    if torch.cuda.is_available() or _CudaElsewhere.active:
        return
    _CudaElsewhere.active = True
    _answer_device_queries(stand_in)
    _answer_random_state()
    _answer_scaling()
    _CudaElsewhere(stand_in).__enter__()
    # The tracker warns when the CPU generator moved while it forked the CUDA one: here they are the same generator.
    logging.getLogger("megatron.core.tensor_parallel.random").setLevel(logging.ERROR)


class _CudaElsewhere(TorchFunctionMode):
    """Sends `device="cuda"` factories, `.cuda()` and `.to("cuda")` to the device that stands in.

    `tensor.type()` names the CUDA type: megatron.core compares these strings in its optimizer and in gradient clipping.
    """

    active = False

    def __init__(self, stand_in: torch.device) -> None:
        super().__init__()
        self.stand_in = stand_in

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs) if kwargs else {}
        if "device" in kwargs and _is_cuda(kwargs["device"]):
            kwargs["device"] = self.stand_in
        kwargs.pop("pin_memory", None)  # there is no GPU to copy to from pinned memory
        if func is torch.Tensor.cuda:
            return args[0].to(self.stand_in)
        if func is torch.Tensor.to:
            args = tuple(self.stand_in if _is_cuda(arg) else arg for arg in args)
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return f"torch.cuda.{func(*args).rpartition('.')[2]}"
        return func(*args, **kwargs)


def without_stand_in() -> contextlib.AbstractContextManager[Any]:
    """Inside, torch is as it is: for our own inner loops, which name no CUDA device, and of whose time a mode that sees every call takes
    a third."""
    return torch._C.DisableTorchFunction()


def _is_cuda(device: Any) -> bool:
    return (isinstance(device, str) and device.startswith("cuda")) or (isinstance(device, torch.device) and device.type == "cuda")


class _NoStream:
    """A stream on which everything is already finished."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self, event: Any = None) -> None: ...


def _answer_device_queries(stand_in: torch.device) -> None:
    cuda: Any = torch.cuda
    cuda.current_device = lambda: stand_in
    cuda.synchronize = lambda device=None: None
    cuda.empty_cache = lambda: None
    cuda.Stream = _NoStream
    cuda.current_stream = cuda.default_stream = lambda device=None: _NoStream()
    cuda.stream = lambda stream: contextlib.nullcontext()


def _answer_random_state() -> None:
    """CUDA random state = the CPU generator's, also inside megatron.core's tracker (tensor_parallel.random)."""
    from megatron.core.tensor_parallel import random as megatron_random

    def get_state(device: Any = "cuda", clone: bool = False, graph_safe: bool = False) -> torch.Tensor:
        return torch.random.get_rng_state()

    def set_state(new_state: torch.Tensor, device: Any = -1, graph_safe: bool = False) -> None:
        torch.random.set_rng_state(new_state)

    cuda: Any = torch.cuda
    cuda.get_rng_state, cuda.set_rng_state, cuda.manual_seed = get_state, set_state, torch.random.manual_seed
    patched: Any = megatron_random
    patched._get_cuda_rng_state, patched._set_cuda_rng_state = get_state, set_state


def _answer_scaling() -> None:
    """Gradients are scaled where they lie. megatron.core's own stand-in for the kernel makes a copy of each, and copies that back."""
    from megatron.core.optimizer import clip_grads

    def scale(chunk_size: int, overflow: torch.Tensor, tensors: list[list[torch.Tensor]], factor: float) -> None:
        sources, targets = tensors
        for source, target in zip(sources, targets, strict=True):
            torch.mul(source, factor, out=target)

    patched: Any = clip_grads
    patched.multi_tensor_scale_impl = scale
