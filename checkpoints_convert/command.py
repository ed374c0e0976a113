"""What both converters share on the command line: options, the single process, and the choice of a parameter type."""

import argparse
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from megatron_atesd.errors import ConfigError, ConversionError
from megatron_atesd.logs import add_log_level
from megatron_atesd.paths import user_path

if TYPE_CHECKING:
    from megatron_atesd.model.architecture import Architecture
    from megatron_atesd.model.gpt import HiddenStateGPT

TOLERANCE = 1e-4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def command_parser(description: str, source: str, source_help: str, out_help: str) -> argparse.ArgumentParser:
    """The parser of a converter that reads the folder `--source`."""
    parser = argparse.ArgumentParser(description=description, epilog="With a GPU it is used; CUDA_VISIBLE_DEVICES= converts on the CPU.")
    add_log_level(parser)
    add = parser.add_argument
    add(f"--{source}", dest="source", type=user_path, required=True, metavar="DIR", help=source_help)
    add("--out", type=user_path, required=True, metavar="DIR", help=out_help)
    add("--dtype", choices=("fp32", "bf16", "keep"), default="keep", help="type of the written weights (default: as stored)")
    add("--verify", action="store_true", help="compare the logits of both sides in fp32 on text; keep the result only if they agree")
    add("--tolerance", type=float, default=TOLERANCE, metavar="X", help=f"largest logit difference allowed (default {TOLERANCE:g})")
    add("--force", action="store_true", help="replace a non-empty --out")
    return parser


@contextmanager
def single_process() -> Iterator[None]:
    """megatron.core's groups for this one process. Raises ConfigError under a torchrun of several."""
    if (world := int(os.environ.get("WORLD_SIZE", "1"))) != 1:
        raise ConfigError(f"a conversion runs as one process, WORLD_SIZE is {world}; start it with python, without torchrun")
    from megatron_atesd.parallel.session import parallel_session  # slow to import: --help does not wait for it

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"megatron[._]")  # deprecations inside libraries tell the user nothing
        with parallel_session():
            yield


def whole_model(architecture: "Architecture", dtype: str) -> "HiddenStateGPT":
    """The undivided model, its parameters not initialised: loading fills every one."""
    from megatron_atesd.model.gpt import build_model
    from megatron_atesd.model.megatron_config import transformer_config

    return build_model(architecture, transformer_config(architecture, 1, 1, False, dtype, {"perform_initialization": False}))


def choose_dtype(asked: str, stored: Iterable[torch.dtype], source: Path) -> torch.dtype:
    """What was asked for (a name of DTYPES), or for keep the one type that all tensors are stored in.

    Raises ConversionError when they are stored in several types, or in another one.
    """
    if asked != "keep":
        return DTYPES[asked]
    names = sorted(dtype_name(dtype) for dtype in set(stored))
    if len(names) != 1 or names[0] not in DTYPES:
        raise ConversionError(f"{source}: weights are stored as {', '.join(names)}; choose --dtype fp32 or --dtype bf16")
    return DTYPES[names[0]]


def dtype_name(dtype: torch.dtype) -> str:
    """As in DTYPES; torch's own name for another type."""
    return next((name for name, known in DTYPES.items() if known == dtype), str(dtype))
