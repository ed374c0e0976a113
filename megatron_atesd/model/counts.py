"""Parameters of a model and floating-point operations of its passes, by formula.

A multiply-add is two operations. Counted are the products with weight matrices and the causal half of attention's two products, not
elementwise work, norms and softmax, nor anything that is computed twice. Letters: H hidden, F feed-forward, Q and K widths of all queries
and of all keys, V vocabulary, T tensor-parallel size, r rank of LoRA's adapters.
"""

from collections.abc import Collection

from megatron_atesd.model.architecture import Architecture

ROW_PARALLEL = ("o_proj", "down_proj")  # projections whose inputs tensor parallelism divides; of the others it divides the outputs


def layer_matrices(arch: Architecture) -> int:
    """Entries of a layer's weight matrices: H·(Q + 2K) + Q·H + 3·H·F."""
    q, k = arch.heads * arch.head_size, arch.query_groups * arch.head_size
    return arch.hidden * (q + 2 * k) + q * arch.hidden + 3 * arch.hidden * arch.ffn


def projections(arch: Architecture) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of a layer's projections by their names in Hugging Face and PEFT."""
    h, f, q, k = arch.hidden, arch.ffn, arch.heads * arch.head_size, arch.query_groups * arch.head_size
    attention = {"q_proj": (h, q), "k_proj": (h, k), "v_proj": (h, k), "o_proj": (q, h)}
    return attention | {"gate_proj": (h, f), "up_proj": (h, f), "down_proj": (f, h)}


def layer_adapters(arch: Architecture, targets: Collection[str], rank: int, tensor: int) -> int:
    """Parameters of a layer's adapters on one rank, r · (inputs + outputs) each, of which T divides one."""
    sizes = [
        inputs // tensor + outputs if name in ROW_PARALLEL else inputs + outputs // tensor
        for name, (inputs, outputs) in projections(arch).items()
        if name in targets
    ]
    return rank * sum(sizes)


def layer_parameters(arch: Architecture, tensor: int) -> int:
    """Of one rank: the matrices divided by T, and the norms: 2·H and, with QK-norm, 2·head size."""
    return layer_matrices(arch) // tensor + 2 * arch.hidden + (2 * arch.head_size if arch.qk_norm else 0)


def vocabulary_parameters(arch: Architecture, tensor: int) -> int:
    """V·H / T of an embedding or a head, V being padded to a multiple of T."""
    return -(-arch.vocabulary // tensor) * arch.hidden


def model_parameters(arch: Architecture) -> int:
    """Of the whole model: layers, final norm, embedding and, unless it is tied, head."""
    return arch.layers * layer_parameters(arch, 1) + arch.hidden + (1 if arch.tied else 2) * vocabulary_parameters(arch, 1)


def forward_flops(arch: Architecture, length: int) -> float:
    """The layers over one sequence of `length` tokens: 2 · matrices a token, and of attention's two products the causal half."""
    attention = 2 * 2 * arch.heads * arch.head_size * length * (length + 1) // 2
    return float(arch.layers * (2 * length * layer_matrices(arch) + attention))


def matrix_flops(arch: Architecture, length: int) -> float:
    """Of forward_flops what the products with weight matrices take."""
    return float(arch.layers * 2 * length * layer_matrices(arch))


def loss_flops(arch: Architecture, tokens: float) -> float:
    """Logits of teacher and student and the gradients of hidden states and head: four products of tokens × H × V."""
    return 4 * 2.0 * tokens * arch.hidden * arch.vocabulary
