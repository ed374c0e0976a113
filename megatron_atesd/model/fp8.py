"""FP8 through Transformer Engine: megatron.core's settings for a pass, and what it asks of a machine and of shapes."""

from contextlib import AbstractContextManager
from typing import Any, get_args

from megatron.core.enums import Fp8Recipe
from megatron.core.fp8_utils import get_fp8_align_size, get_fp8_context
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_atesd.config import Precision, fp8_recipe
from megatron_atesd.model.architecture import Architecture

FP8: tuple[Precision, ...] = tuple(precision for precision in get_args(Precision) if precision != "bf16")
# e4m3 has more digits, e5m2 (gradients of hybrid) more range, which gradients need unless few values share a scale.
_FORMATS = {"tensorwise": "hybrid", "delayed": "hybrid", "blockwise": "e4m3", "mxfp8": "e4m3"}


def fp8_fields(precision: Precision | None) -> dict[str, Any]:
    """The fields of TransformerConfig that put the linear layers of a pass into `precision`."""
    name = fp8_recipe(precision)
    return {"fp8": None if name is None else _FORMATS[name], "fp8_recipe": name or "delayed"}


def token_multiple(config: TransformerConfig) -> int:
    """FP8 products need a multiple of so many tokens; 1 without FP8."""
    return get_fp8_align_size(Fp8Recipe(config.fp8_recipe)) if config.fp8 else 1


def layer_context(config: TransformerConfig, layer_number: int) -> AbstractContextManager[Any]:
    """Inside, Transformer Engine's modules of one layer (counted from 1) compute in the config's FP8, as megatron.core's own passes do."""
    return get_fp8_context(config) if config.fp8_recipe == Fp8Recipe.delayed else get_fp8_context(config, layer_number - 1)


def products(arch: Architecture, tensor: int) -> dict[str, int]:
    """Sizes of the layers' matrix products on one of `tensor` ranks, beside the number of tokens."""
    heads = arch.heads * arch.head_size // tensor
    return {
        "hidden size": arch.hidden,
        "width of queries, keys and values": heads + 2 * arch.query_groups * arch.head_size // tensor,
        "width of the attention's output": heads,
        "feed-forward width": arch.ffn // tensor,
    }


def unavailable(precision: Precision) -> str:
    """Why Transformer Engine cannot compute in this FP8 precision here; empty if it can."""
    import transformer_engine.pytorch as te  # pyright: ignore[reportMissingImports]

    checks = {"blockwise": te.is_fp8_block_scaling_available, "mxfp8": te.is_mxfp8_available}
    available, reason = checks.get(fp8_recipe(precision) or "", te.is_fp8_available)(return_reason=True)
    return "" if available else reason or "no reason given"
