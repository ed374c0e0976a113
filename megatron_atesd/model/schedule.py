"""One pass over micro-batches through megatron.core's pipeline schedule, and the way results of the last stage reach every rank."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_atesd.model.fp8 import token_multiple
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.micro_batches import MicroBatch, Needs, Pair, micro_batches
from megatron_atesd.parallel.context import context_place
from megatron_atesd.parallel.groups import broadcast_from_last_stage

LastStage = Callable[[MicroBatch, Tensor], tuple[Tensor, Tensor, Any]]


def micro_batch_multiple(model: HiddenStateGPT) -> int:
    """`run_schedule` takes a multiple of so many micro-batches: each of several chunks works on that many at a stretch."""
    size = model.config.microbatch_group_size_per_vp_stage if len(model.chunks) > 1 else 1
    assert size is not None  # TransformerConfig sets it
    return size


def run_schedule(model: torch.nn.Module, batches: Sequence[MicroBatch], last_stage: LastStage, forward_only: bool) -> list[Any]:
    """Forward (and backward) of every micro-batch; returns what `last_stage` gave, on the last pipeline stage ([] on the others).

    model: a HiddenStateGPT, or its wrapped chunks in a ModuleList: the children are the chunks. With more than one the schedule is
    the interleaved 1F1B, and each chunk goes through all micro-batches in order.
    last_stage(batch, hidden_BSH) → (sum to minimise, how many it is a sum over (int tensor), anything to keep). Gradients are
    finalised by the model config's finalize_model_grads_func: summed over DP, divided once by the global count.
    """

    def forward_step(data: Iterator[MicroBatch], chunk: torch.nn.Module, *_: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
        batch = next(data)
        return chunk(batch.ids_BS, batch.bounds), partial(last_stage, batch)

    chunks = list(model.children())
    return get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=[iter(batches) for _ in chunks],
        model=chunks,
        num_microbatches=len(batches),
        seq_length=max(batch.ids_BS.shape[1] for batch in batches),
        micro_batch_size=len(batches[0].ids_BS),
        forward_only=forward_only,
    )


def model_batches(model: HiddenStateGPT, pairs: Sequence[Pair], tokens: int) -> list[MicroBatch]:
    """Micro-batches of up to `tokens` tokens as `model`'s layout and present precision need them; at least one, so that no rank misses
    a collective. Their responses are this context-parallel rank's share."""
    config, (rank, size) = model.config, context_place()
    on_rank = (config.tensor_model_parallel_size if config.sequence_parallel else 1) * token_multiple(config)
    chunks = 2 * size if size > 1 else 1
    needs = Needs(math.lcm(chunks, size * on_rank), chunks, micro_batch_multiple(model), model.packed, (rank, size))
    return micro_batches(pairs, tokens, needs)


def sum_over_ranks(sums: Sequence[Tensor], size: int) -> list[float]:
    """Sums [size] of every micro-batch (none on all but the last stage), added over data and context parallelism; on every rank."""
    device = torch.cuda.current_device()
    total = torch.stack([*sums, torch.zeros(size, dtype=torch.float64, device=device)]).sum(dim=0)
    dist.all_reduce(total, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    broadcast_from_last_stage(total)
    return total.tolist()
