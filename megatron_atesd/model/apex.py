"""NVIDIA Apex: used where it is installed, never required.

It is told by its modules, not by its name: the package index has a web toolkit called apex as well. megatron.core finds its fused Adam and
its fused gradient accumulation by itself.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from megatron_atesd.errors import ConfigError


@dataclass(frozen=True)
class Apex:
    """What of it is installed.

    folders: where the package `apex`, whosever it is, lies; kernels: its compiled optimizers; gradients: its fused gradient accumulation.
    """

    folders: tuple[Path, ...]
    kernels: bool
    gradients: bool

    @property
    def nvidias(self) -> bool:
        """Whether the package is NVIDIA's."""
        return any((folder / "optimizers").is_dir() for folder in self.folders)


def find_apex() -> Apex:
    """Looks without importing anything."""
    spec = find_spec("apex")
    folders = tuple(map(Path, spec.submodule_search_locations or ())) if spec else ()
    return Apex(folders, find_spec("amp_C") is not None, find_spec("fused_weight_gradient_mlp_cuda") is not None)


def check_gradient_fusion(wanted: bool, apex: Apex) -> None:
    """Raise ConfigError when megatron.gradient_accumulation_fusion is `wanted`, but Apex's part for it is not there.

    Transformer Engine's linear layers accumulate gradients in fp32 buffers by themselves, but megatron.core's vocabulary projection, in
    either layer spec, refuses the setting without Apex. Gradients of the embedding and the projection come from autograd and join the same
    buffers, where DistributedDataParallel looks whether a parameter's gradient is already there. Not tried: the kernels need a GPU.
    """
    if wanted and not apex.gradients:
        raise ConfigError(
            "megatron.gradient_accumulation_fusion is true, but NVIDIA Apex's module fused_weight_gradient_mlp_cuda is not installed; "
            "build Apex with --cuda_ext, or set it to false"
        )
