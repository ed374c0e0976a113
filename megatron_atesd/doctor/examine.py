"""The doctor: examines the machines of a job, by its own command (tools/doctor.py) and, the cheap part, at the start of each training.

Whatever is collective needs torch's default process group.
"""

import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_atesd.config import TrainConfig
from megatron_atesd.doctor.finding import Finding, as_finding, merge, refuse_errors, worst_first
from megatron_atesd.doctor.machine import check_this_machine, nearest_folder
from megatron_atesd.doctor.ranks import check_ranks, own_facts
from megatron_atesd.doctor.software import check_installation
from megatron_atesd.errors import ConfigError
from megatron_atesd.logs import warn_here
from megatron_atesd.output_folder import check_writable
from megatron_atesd.parallel.groups import from_rank_0, gathered, is_main
from megatron_atesd.parallel.session import processes, start_minutes

TOKEN_SECONDS = 10.0  # network file systems show new files late
PROBE_BYTES, PROBE_REPEATS = 16 * 2**20, 3


@contextmanager
def examined_processes(config: TrainConfig) -> Iterator[None]:
    """torch's default process group while inside, once the doctor has examined it. Rank 0 says its warnings.

    Raises ConfigError, on all ranks alike, for what it found to be an error.
    """
    with processes(start_minutes(config.parallel)):
        findings = examine_ranks(config)
        refuse_errors(findings)
        if is_main():
            for finding in findings:
                if finding.severity == "warning":
                    warn_here(f"{finding.what}: {finding.remedy}")
        yield


def examine_machine(config: TrainConfig) -> list[Finding]:
    """What this rank alone can find."""
    return check_installation() + check_this_machine(config)


def examine_ranks(config: TrainConfig) -> list[Finding]:
    """What all ranks find, the same list on each, the worst first. Collective, in fractions of a second."""
    own, facts = examine_machine(config) + check_run_dir(Path(config.run.dir)), own_facts(config)
    return worst_first(merge(gathered(own)) + check_ranks(gathered(facts), gathered(read_clock())))


def read_clock() -> tuple[float, float]:
    """This rank's clock before and after a barrier, whose end is one moment for all ranks. Collective."""
    dist.barrier()  # so that none waits long in the next one
    before = time.time()
    dist.barrier()
    return before, time.time()


def check_run_dir(run_dir: Path) -> list[Finding]:
    """An error where the run directory, or the folder that it is to be made in, cannot be written or is not rank 0's. Collective."""
    token, problem = from_rank_0(write_token(run_dir) if is_main() else (Path(), None))
    findings = [problem] if problem else see_token(token, TOKEN_SECONDS)
    dist.barrier()
    if is_main() and not problem:
        token.unlink()
    return findings


def write_token(run_dir: Path) -> tuple[Path, Finding | None]:
    """A new file where run_dir is or is to be, and what prevented it."""
    token = nearest_folder(run_dir).absolute() / f".doctor-{uuid.uuid4().hex}"
    try:
        check_writable("run.dir", run_dir)
        token.touch()
    except ConfigError as error:
        return token, as_finding("run.dir", error)
    except OSError as error:
        return token, cannot_write(token.parent, error)
    return token, None


def see_token(token: Path, seconds: float) -> list[Finding]:
    """An error if the token does not appear here within so many seconds, or no file can be written beside it."""
    deadline = time.monotonic() + seconds
    while not os.path.exists(token):  # Path.exists raises in a folder closed to us
        if time.monotonic() > deadline:
            what = f"a file that rank 0 wrote to {token.parent} does not appear"
            return [Finding("error", "run.dir", what, "put run.dir on a file system that all nodes share")]
        time.sleep(0.05)
    try:
        with tempfile.TemporaryFile(dir=token.parent):
            return [Finding("information", "run.dir", f"{token.parent} is writable, and the same for all ranks")]
    except OSError as error:
        return [cannot_write(token.parent, error)]


def cannot_write(folder: Path, error: OSError) -> Finding:
    return Finding(
        "error", "run.dir", f"{folder} cannot be written ({error.strerror})", "choose another run.dir, or give this user the right to"
    )


def measure_bandwidth() -> list[Finding]:
    """GB/s of all-reduces over all ranks: bytes · 2(n − 1)/n a second, so that it compares with the links' speed. Collective.

    Either each rank has a GPU or none has.
    """
    ranks = dist.get_world_size()
    if ranks == 1:
        return []
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend, device = ("nccl", "cuda") if torch.cuda.is_available() else ("gloo", "cpu")
    group, data = dist.new_group(backend=backend), torch.zeros(PROBE_BYTES // 4, device=device)
    seconds = min(_timed_all_reduce(data, group) for _ in range(1 + PROBE_REPEATS))  # the first one opens the connections
    rate = PROBE_BYTES * 2 * (ranks - 1) / ranks / seconds / 1e9
    what = f"{rate:.2f} GB/s, all-reduce of {PROBE_BYTES // 2**20} MiB over {ranks} ranks ({backend})"
    return [Finding("information", "bandwidth", what)]


def _timed_all_reduce(data: torch.Tensor, group: Any) -> float:
    dist.barrier()
    started = time.perf_counter()
    dist.all_reduce(data, group=group)
    data[0].item()  # waits for the GPU
    return time.perf_counter() - started
