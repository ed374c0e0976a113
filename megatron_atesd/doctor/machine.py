"""What this rank has: GPUs, memory and disk."""

import math
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from glob import escape, glob
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch
from torch.cuda import nccl

from megatron_atesd.checkpoint.model_folder import find_hf
from megatron_atesd.config import Precision, TrainConfig
from megatron_atesd.doctor.finding import Finding, as_finding
from megatron_atesd.errors import AtesdError
from megatron_atesd.model.counts import layer_adapters, model_parameters
from megatron_atesd.model.fp8 import FP8, unavailable
from megatron_atesd.model.hf_config import read_architecture

GIB = 2**30
# In a checkpoint, of what learns: bf16 weights and teacher, fp32 master weights and two moments; or fp32 weights, teacher and two moments.
BYTES_PER_PARAMETER = 16
MIN_MEMORY = GIB  # for imports and buffers of a rank
FREE_GPU_SHARE = 0.9
FP8_CAPABILITY = (8, 9)  # Ada; Hopper is (9, 0)


@dataclass(frozen=True)
class Gpus:
    """The GPUs that this rank sees: how many, and of its own one name, compute capability, memory in bytes, and libraries."""

    count: int
    name: str = ""
    capability: tuple[int, int] = (0, 0)
    free: int = 0
    total: int = 0
    libraries: str = ""


def check_this_machine(config: TrainConfig) -> list[Finding]:
    """Findings about the machine of this rank."""
    ranks_here, run_dir = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), Path(config.run.dir)
    checkpoint, unusable = read_model(config)
    return [
        *unusable,
        *check_gpus(see_gpus(), ranks_here, Path("/dev/nvidiactl").exists(), os.environ.get("CUDA_VISIBLE_DEVICES")),
        *check_transformer_engine(torch.cuda.is_available(), find_spec("transformer_engine") is not None),
        *check_memory(psutil.virtual_memory().available, ranks_here),
        *check_disk(free_bytes(run_dir), checkpoint, checkpoints_to_come(config), config.run.dir),
    ]


def read_model(config: TrainConfig) -> tuple[int, list[Finding]]:
    """Bytes of a checkpoint, 0 with an error when model.path, on this machine, is no model."""
    try:
        return checkpoint_bytes(config), []
    except AtesdError as error:
        return 0, [as_finding("model.path", error)]
    except OSError as error:
        return 0, [Finding("error", "model.path", f"{error.filename} cannot be read ({error.strerror})", "give this user the right to")]


def checkpoint_bytes(config: TrainConfig) -> int:
    """About what a checkpoint takes; 0 without a model."""
    if not config.model.path:
        return 0
    arch, lora = read_architecture(find_hf(Path(config.model.path))), config.lora
    adapters = arch.layers * layer_adapters(arch, lora.targets, lora.rank, 1)
    return BYTES_PER_PARAMETER * (adapters if lora.rank else model_parameters(arch))


def checkpoints_to_come(config: TrainConfig) -> int:
    """How many more than those of now will be in the run directory at once: a new one is written before an old one goes."""
    keep, every, updates = config.checkpoint.keep, config.checkpoint.every, config.run.updates
    written = math.ceil(updates / every) if every else 1
    saved = sum(map(os.path.isdir, glob(f"{escape(config.run.dir)}/checkpoints/step_*")))
    return max(1, min(written, keep + 1 if keep else written) - saved)


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest above it that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if os.path.isdir(folder))  # Path.is_dir raises in one closed to us


def free_bytes(path: Path) -> int:
    """On the file system that a folder is on, or is to be made on."""
    while True:  # rank 0 may make the folder and remove it at this moment, see check_writable
        with suppress(FileNotFoundError):
            return shutil.disk_usage(nearest_folder(path)).free


def see_gpus() -> Gpus:
    """What torch says; for a rank without a GPU of its own, the number only."""
    count, mine = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    if mine >= count:
        return Gpus(count)
    free, total = torch.cuda.mem_get_info(mine)
    libraries = f"CUDA {torch.version.cuda}, NCCL {'.'.join(map(str, nccl.version()))}"
    return Gpus(count, torch.cuda.get_device_name(mine), torch.cuda.get_device_capability(mine), free, total, libraries)


def check_gpus(gpus: Gpus, ranks_here: int, driver: bool, visible: str | None) -> list[Finding]:
    """Fewer GPUs than ranks of this node is an error; a driver without GPUs and one in use by others are warnings.

    driver: whether NVIDIA's is loaded; visible: CUDA_VISIBLE_DEVICES.
    """
    if gpus.count == 0 and driver and visible != "":
        what = f"torch {torch.__version__} sees no GPU, though NVIDIA's driver is loaded: the job would run on the CPU"
        return [Finding("warning", "GPU", what, "install a CUDA build of torch, or set CUDA_VISIBLE_DEVICES to nothing if that is meant")]
    if gpus.count == 0:
        return [Finding("information", "GPU", "none: gloo on the CPU; no NCCL, no FP8")]
    if gpus.count < ranks_here:
        what = f"{ranks_here} processes on a node of {gpus.count} GPUs"
        return [Finding("error", "GPU", what, f"start at most {gpus.count} on it (--nproc-per-node, GPUS_PER_NODE)")]
    fp8 = "FP8" if gpus.capability >= FP8_CAPABILITY else "no FP8"
    findings = [Finding("information", "GPU", f"{gpus.count} × {gpus.name}, {fp8}, {gpus.libraries}")]
    if gpus.free < FREE_GPU_SHARE * gpus.total:
        what = f"only {gpus.free / GIB:.1f} of {gpus.total / GIB:.1f} GiB of GPU memory are free"
        findings.append(Finding("warning", "GPU", what, "end what else runs on this GPU (nvidia-smi shows it)"))
    return findings


def check_transformer_engine(cuda: bool, installed: bool, why_not: Callable[[Precision], str] = unavailable) -> list[Finding]:
    """Whether Transformer Engine is there and which FP8 it can compute; an error where it is without CUDA.

    why_not: why an FP8 precision cannot be computed here, empty if it can; the first call imports Transformer Engine.
    """
    if not cuda and installed:
        what = "installed, but there is no GPU: megatron.core's optimizer would call its kernels"
        return [Finding("error", "Transformer Engine", what, "train in an environment without it, or on a machine with a GPU")]
    if not cuda:
        return []
    if not installed:
        remedy = "for FP8 and fused kernels: pip install --no-build-isolation -e '.[gpu]'"
        return [Finding("information", "Transformer Engine", "not installed", remedy)]
    try:
        able = [precision for precision in FP8 if not why_not(precision)]
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        what = f"installed, but it cannot be used ({error})"
        remedy = "install the build for this torch and CUDA, or pip uninstall transformer-engine transformer-engine-torch"
        return [Finding("error", "Transformer Engine", what, remedy)]
    return [Finding("information", "Transformer Engine", f"installed; {', '.join(able) or 'no FP8'}")]


def check_memory(available: int, ranks_here: int) -> list[Finding]:
    """A warning when the ranks of this node have little memory (bytes) to share."""
    what = f"{available / GIB:.1f} GiB of memory available for {ranks_here} process{'es' if ranks_here > 1 else ''} of this node"
    if available < MIN_MEMORY * ranks_here:
        return [Finding("warning", "memory", f"only {what}", "end other processes, or start fewer on this node")]
    return [Finding("information", "memory", what)]


def check_disk(free: int, checkpoint: int, wanted: int, run_dir: str) -> list[Finding]:
    """An error when not even one checkpoint fits, a warning when not all that are to come do; sizes in bytes."""
    has = f"{free / GIB:.1f} GiB are free for run.dir {run_dir}"
    needs = f"a checkpoint takes about {checkpoint / GIB:.1f} GiB"
    remedy = "free some space, lower checkpoint.keep or choose another run.dir"
    if free < checkpoint or free == 0:
        return [Finding("error", "disk", f"only {has}, and {needs}", remedy)]
    if free < wanted * checkpoint:
        return [Finding("warning", "disk", f"only {has}; {needs}, and {wanted} may be on disk at once", remedy)]
    return [Finding("information", "disk", f"{has}; {needs}" if checkpoint else has)]
