"""Runs a function on several gloo processes, the way torchrun would start them.

    results = run_distributed(measure, 4, "argument")     # measure("argument") on 4 ranks; their return values in rank order

The function must be importable (top level of its module), its arguments and results picklable. It finds torchrun's environment
(RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) and makes its own process groups, for example with `parallel_session`.

Every call has new processes, so that nothing that a test leaves behind reaches another. They are forks of one process that has imported
torch, megatron.core and this project: six seconds of imports once, not in every rank of every test.
"""

import multiprocessing
import os
import pickle
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessContext, start_processes

from tests.support.patience import PATIENCE

# What most ranks import. None of it starts a thread or touches a GPU: a fork would have only half of either.
multiprocessing.set_forkserver_preload(
    ["pytest", "transformers.models.qwen3.modeling_qwen3", "transformers.models.llama.modeling_llama", "megatron_atesd.train.loop"]
)


def run_distributed(function: Callable[..., Any], world_size: int, *args: Any, timeout: float = PATIENCE) -> list[Any]:
    """Results of `function(*args)` on `world_size` processes of one thread each, in rank order.

    timeout: seconds for the whole call. Whatever happens, no process is left behind.
    Raises torch's ProcessRaisedException with the traceback of the rank that failed first, or TimeoutError.
    """
    # Its port stays taken: no other test can get it.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # pyright: ignore[reportPrivateImportUsage]
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world_size, store.port, folder, function, args)
        context = start_processes(_run_rank, arguments, world_size, join=False, start_method="forkserver")
        assert context is not None
        try:
            _wait(context, timeout, function.__name__)
        finally:
            _end(context)
        return [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(world_size)]


def _run_rank(rank: int, world_size: int, port: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.setpgrp()
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0")
    (Path(folder) / str(rank)).write_bytes(pickle.dumps(function(*args)))


def _wait(context: ProcessContext, timeout: float, name: str) -> None:
    deadline = time.monotonic() + timeout
    while not context.join(timeout=max(0.0, deadline - time.monotonic()), grace_period=1.0):
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{name} took longer than {timeout:g} s on {len(context.processes)} processes")


def _end(context: ProcessContext) -> None:
    """Kill the ranks that still run and whatever any rank started (each rank leads a process group)."""
    for process in context.processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
