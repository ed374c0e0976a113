"""What the delayed FP8 recipe remembers, for checkpoints: each layer's scales and the largest values (amax) of its last passes.

Transformer Engine offers the same as `_extra_state`, a pickle that its newer versions refuse to load; here it is tensors.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from megatron.core import parallel_state
from megatron.core.fp8_utils import get_fp8_recipe
from torch import Tensor

from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.parallel.groups import gathered

History = dict[str, dict[str, Tensor]]
_OF_A_PRODUCT = 3  # what Transformer Engine scales in a forward product: input, weight, output


def scaling_history(model: HiddenStateGPT) -> History:
    """Tensors `scale_fwd`, `amax_history_fwd`, `scale_bwd`, `amax_history_bwd` of each layer, on the CPU, by its name in the whole model.

    Empty for other recipes. All-reduces make them equal over tensor and context parallelism, but for what passes without gradients saw
    since the last one with; data-parallel ranks saw other sequences, and have other scales. Collective over the pipeline.
    """
    mine = {name: {key: tensor.cpu() for key, tensor in _tensors(layer)} for name, layer in _layers(model)}
    everyone = gathered(mine, parallel_state.get_pipeline_model_parallel_group())
    return {name: tensors for stage in everyone for name, tensors in stage.items() if tensors}


def load_scaling_history(model: HiddenStateGPT, saved: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Take over what `scaling_history` gave, at any TP × PP × DP; layers of which nothing was saved begin anew."""
    for name, layer in _layers(model):
        if name in saved:
            layer.fp8_meta["num_gemms"] = len(saved[name]["scale_fwd"]) // _OF_A_PRODUCT
            layer.init_fp8_meta_tensors(get_fp8_recipe(model.config))
            for key, tensor in _tensors(layer):
                rows = min(len(tensor), len(saved[name][key]))  # how long the history is may have been changed
                tensor[:rows].copy_(saved[name][key][:rows])
        else:
            for key, tensor in _tensors(layer):
                tensor.fill_(float(key.startswith("scale")))  # what Transformer Engine begins with


def _layers(model: HiddenStateGPT) -> Iterator[tuple[str, Any]]:
    """Transformer Engine's modules by their names in the whole model."""
    for chunk in model.chunks:
        yield from ((chunk.whole_name(name), module) for name, module in chunk.named_modules() if hasattr(module, "fp8_meta"))


def _tensors(layer: Any) -> Iterator[tuple[str, Tensor]]:
    for way in ("fwd", "bwd"):
        state = layer.fp8_meta.get(f"scaling_{way}")
        if hasattr(state, "amax_history"):
            yield f"scale_{way}", state.scale
            yield f"amax_history_{way}", state.amax_history
