"""The shapes of the published Qwen3 models, so that a layout can be planned before anything is downloaded."""

from megatron_atesd.model.architecture import Architecture


def _qwen3(hidden: int, ffn: int, layers: int, heads: int, tied: bool) -> Architecture:
    return Architecture("qwen3", hidden, ffn, layers, heads, 8, 128, 151_936, 40_960, 1e6, 1e-6, tied, qk_norm=True)


# hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, tie_word_embeddings of each config.json
QWEN3 = {
    "0.6b": _qwen3(1024, 3072, 28, 16, True),
    "1.7b": _qwen3(2048, 6144, 28, 16, True),
    "4b": _qwen3(2560, 9728, 36, 32, True),
    "8b": _qwen3(4096, 12288, 36, 32, False),
    "14b": _qwen3(5120, 17408, 40, 40, False),
    "32b": _qwen3(5120, 25600, 64, 64, False),
}
