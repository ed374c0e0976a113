"""The trainer's process as vLLM finds it, and as it has to leave it."""

import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

# One process, its own threads, the model runner that takes logits processors, and nothing sent to anybody.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
DEFAULTS = {"VLLM_LOGGING_LEVEL": "ERROR"}


def import_vllm() -> Any:
    """vLLM's current platform, once vLLM is imported. To be called inside `kept_process`."""
    from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

    if current_platform.is_cpu():
        current_platform.simple_compile_backend = "eager"  # a few small functions, for which a C++ compiler would be needed
    import vllm.entrypoints.llm  # pyright: ignore[reportMissingImports]  # noqa: F401

    return current_platform


@contextmanager
def kept_process() -> Iterator[None]:
    """What vLLM changes of the process as it is imported and started is put back: environment, threads, random states, precision.

    Its own variables (VLLM_…) stay.
    """
    environment, set_threads, threads = dict(os.environ), torch.set_num_threads, torch.get_num_threads()
    precision, states = torch.get_float32_matmul_precision(), (random.getstate(), np.random.get_state(), torch.get_rng_state())
    on_gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    os.environ.update(ENVIRONMENT)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # at what its packages import
            yield
    finally:
        own = {name: value for name, value in os.environ.items() if name.startswith("VLLM_")}
        os.environ.clear()
        os.environ.update(environment | own)
        torch.set_num_threads = set_threads
        set_threads(threads)
        torch.set_float32_matmul_precision(precision)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu)
