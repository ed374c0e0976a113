"""Process groups and seeds from torchrun's environment; without torchrun, one process."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from megatron_atesd.config import ParallelConfig
from megatron_atesd.errors import ConfigError
from megatron_atesd.parallel import cpu_backend

# NCCL for tensors, gloo for control: torch sends tensors by where they are, objects and barriers by the CPU's backend. megatron.core's
# groups take after the default one.
WITH_CUDA = "cpu:gloo,cuda:nccl"


@contextmanager
def parallel_session(
    tensor: int = 1, pipeline: int = 1, seed: int = 1, timeout_minutes: float = 30.0, virtual_pipeline: int = 1, context: int = 1
) -> Iterator[None]:
    """megatron.core's process groups while inside, torn down on leaving; a default process group that exists already is used and left.

    An exception leaves without waiting for the other ranks: torchrun ends them, and the first traceback is the culprit's.
    Raises ConfigError when TP·PP·CP does not divide the world size.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world % (tensor * pipeline * context):
        raise ConfigError(
            f"world size {world} is not a multiple of parallel.tensor × parallel.pipeline × parallel.context = {tensor} × {pipeline} × "
            f"{context}; start torchrun with a multiple of {tensor * pipeline * context} processes or change the sizes"
        )
    cpu_backend.install()
    with processes(timeout_minutes):
        chunks = virtual_pipeline if virtual_pipeline > 1 else None
        minutes: Any = timeout_minutes  # goes into a timedelta: need not be whole
        parallel_state.initialize_model_parallel(
            tensor,
            pipeline,
            chunks,
            context_parallel_size=context,
            create_gloo_process_groups=torch.cuda.is_available(),
            distributed_timeout_minutes=minutes,
        )
        tensor_parallel.model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
        torch.manual_seed(seed)
        yield
        parallel_state.destroy_model_parallel()


def session_of(parallel: ParallelConfig, seed: int = 1) -> AbstractContextManager[None]:
    """The parallel_session of a run's settings, with the limit of its start."""
    sizes = (parallel.tensor, parallel.pipeline, seed, start_minutes(parallel), parallel.virtual_pipeline, parallel.context)
    return parallel_session(*sizes)


def start_minutes(parallel: ParallelConfig) -> float:
    """How long a collective may wait until `end_start`: ranks read, build and load at their own pace."""
    return max(parallel.start_timeout_minutes, parallel.timeout_minutes)


def end_start(parallel: ParallelConfig) -> None:
    """From here on a collective of any group that waits longer than parallel.timeout_minutes ends the job. Collective."""
    parallel_state.update_pg_timeout(timedelta(minutes=parallel.timeout_minutes))


@contextmanager
def processes(timeout_minutes: float, backend: str = "") -> Iterator[None]:
    """torch's default process group while inside, torn down on leaving without an exception; one that exists already is used and left.

    backend: torch's name of it; without one NCCL beside gloo where there is CUDA, gloo elsewhere.
    """
    already = dist.is_initialized()
    if not already:
        _init_processes(int(os.environ.get("WORLD_SIZE", "1")), timedelta(minutes=timeout_minutes), backend)
    yield
    if not already:
        dist.destroy_process_group()


def _init_processes(world: int, timeout: timedelta, backend: str) -> None:
    os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")  # else every group connects all its ranks: thousands of sockets a rank on 512 GPUs
    backend = backend or (WITH_CUDA if torch.cuda.is_available() else "gloo")
    store, rank = None, 0
    if "RANK" in os.environ:
        store, rank, world = next(dist.rendezvous("env://", timeout=timeout))  # pyright: ignore[reportPrivateImportUsage]
        store = _of_this_start(store)
        _check_same_backend(store, backend, rank, world)
    if backend == WITH_CUDA:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if store is not None:
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=world, timeout=timeout)  # pyright: ignore[reportPrivateImportUsage]


def _check_same_backend(store: Any, backend: str, rank: int, world: int) -> None:
    """Raise ConfigError on all ranks where one, for want of a GPU, has another backend: they would wait for each other in vain."""
    store.set(f"backend_{rank}", backend)
    if rank == 0:
        backends = [store.get(f"backend_{other}").decode() for other in range(world)]
        odd = next((other for other in range(world) if backends[other] != backend), None)
        problem = "" if odd is None else f"rank 0 would use {backend}, rank {odd} {backends[odd]}: not all of them see a GPU"
        store.set("problem", problem or "none")
    if (problem := store.get("problem").decode()) != "none":
        raise ConfigError(f"{problem}; tools/doctor.py, started like this job, says which")


def _of_this_start(store: Any) -> Any:
    """The part of torchrun's store that belongs to this start of the job.

    torchrun keeps one store over its restarts (unless TORCH_DISABLE_SHARE_RDZV_TCP_STORE is 1), in which ranks would find the addresses
    of those that are gone. Only on one node is its count of restarts the same for all ranks.
    """
    start = os.environ["TORCHELASTIC_RESTART_COUNT"] if os.environ.get("GROUP_WORLD_SIZE") == "1" else "0"
    return dist.PrefixStore(f"start_{start}", store)  # pyright: ignore[reportPrivateImportUsage]
