"""How many tokens engine.cache_gib holds with the training engine: known from the settings, before the work starts."""

from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_atesd.config import EngineConfig
from megatron_atesd.errors import ConfigError
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.spec import stage_layers


def layer_bytes(arch: Architecture, megatron: TransformerConfig) -> int:
    """Bytes of one token's key and value in one layer, on one tensor-parallel rank."""
    groups = arch.query_groups // megatron.tensor_model_parallel_size
    return 2 * groups * arch.head_size * megatron.params_dtype.itemsize


def row_groups(megatron: TransformerConfig) -> int:
    """Groups of rows on their way at once: a pipeline's stages, so that none waits for the last one's tokens.

    With several chunks a rank, activations pass it several times a pass: then one group, in order.
    """
    return megatron.pipeline_model_parallel_size if (megatron.virtual_pipeline_model_parallel_size or 1) == 1 else 1


def cache_tokens(engine: EngineConfig, arch: Architecture, megatron: TransformerConfig, longest: int, what: str) -> int | None:
    """Tokens that each group of rows may keep on a rank, by the pipeline stage with the most layers; None where engine.cache_gib is 0.

    longest: tokens of the longest prompt and response together; what: the two in words. Raises ConfigError where they have no room.
    """
    if not engine.cache_gib:
        return None
    groups, layer = row_groups(megatron), layer_bytes(arch, megatron)
    # While rows move, keys or values of one layer are there twice.
    gib_a_token = (layer * max(stage_layers(megatron)) + layer // 2) * groups / 2**30
    tokens = int(engine.cache_gib / gib_a_token)
    if longest > tokens:
        of_each = f" for each of {groups} groups of rows" if groups > 1 else ""
        raise ConfigError(
            f"engine.cache_gib is {engine.cache_gib:g}, which holds {tokens} tokens of keys and values{of_each}; {what} need {longest}: "
            f"set it to {longest * gib_a_token * 1.001:.4g} or more, or 0"
        )
    return tokens
