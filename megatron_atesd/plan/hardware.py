"""GPUs as their public data sheets (of memory: their users' logs) describe them, and what of that a program is assumed to reach."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """memory: bytes that CUDA reports in all, less than the board's name says; flops: dense bf16 operations a second; bandwidth: of the
    memory, bytes a second; nvlink, network: bytes a second that one GPU sends within a node and to other nodes; fp8: recipes that
    Transformer Engine computes on it."""

    memory: float
    flops: float
    bandwidth: float
    nvlink: float
    network: float
    fp8: tuple[str, ...] = ()


_HOPPER = ("tensorwise", "delayed", "blockwise")
# SXM boards. network: one 400 Gb/s adapter a GPU (200 Gb/s for A100), as in the vendor's own 8-GPU machines.
GPUS = {
    "h100": Gpu(79.1 * 2**30, 989e12, 3.35e12, 450e9, 50e9, _HOPPER),
    "h200": Gpu(139.8 * 2**30, 989e12, 4.8e12, 450e9, 50e9, _HOPPER),
    "a100": Gpu(79.1 * 2**30, 312e12, 2.04e12, 300e9, 25e9),
    "b200": Gpu(178.3 * 2**30, 2250e12, 7.7e12, 900e9, 50e9, (*_HOPPER, "mxfp8")),
}


def sxm_board(name: str) -> Gpu | None:
    """The board that CUDA calls `name`, such as NVIDIA H100 80GB HBM3; None for one that is not in GPUS, PCIe and NVL boards included."""
    words = re.findall("[a-z0-9]+", name.lower())
    known = [gpu for key, gpu in GPUS.items() if key in words]
    return known[0] if known and not {"pcie", "nvl"} & set(words) else None


@dataclass(frozen=True)
class Assumptions:
    """What the plan takes for granted; none of it is measured on the GPU that is planned for.

    utilization: share of `flops` that large matrix products reach, with all that runs between them; with `half_tokens` tokens in a
    micro-batch, half of that. bandwidth, link: shares of the data sheet's. launch: seconds that a layer of a decoding step takes at
    least, since its many small kernels are started one by one; captured: the same where a CUDA graph starts them; adapters: what its LoRA
    adapters add to launch. hop: seconds of a
    small collective. fp8: how many times as fast as in bf16 the layers of a pass are; the products alone would be 2. overhead: bytes of
    CUDA context, NCCL buffers and libraries. fragmentation: share of what is allocated that the allocator loses. gpus_per_node: joined
    by NVLink.
    """

    utilization: float = 0.4
    half_tokens: float = 512.0
    bandwidth: float = 0.7
    link: float = 0.7
    launch: float = 6e-4
    captured: float = 5e-5
    adapters: float = 2e-4
    hop: float = 2e-5
    fp8: float = 1.4
    overhead: float = 2 * 2**30
    fragmentation: float = 0.05
    gpus_per_node: int = 8
