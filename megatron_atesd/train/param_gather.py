"""Weights that other data-parallel ranks have updated, gathered layer by layer while the next pass runs (ddp.overlap_param_gather).

DistributedDataParallel waits for a module's weights in a hook before the module's forward, whether the model is called wrapped or not.
The vocabulary projection is read by the loss and by sampling, not by a module's forward: so each chunk's first forward after a step ends
with whatever is still on its way. Then all is there, and the hooks go, which would cost something in every module of every sampled token.
"""

from typing import Any


def prepare_gather(chunk: Any) -> None:
    """Once, for a DistributedDataParallel whose weights are whole."""
    if chunk.ddp_config.overlap_param_gather:
        chunk.disable_forward_pre_hook(param_sync=False)
        chunk.module.register_forward_hook(lambda module, inputs, output: finish_gather(chunk))


def start_gather(chunk: Any) -> None:
    """After an optimizer step: this rank's share of the weights is new; its first forward gathers the rest."""
    if chunk.ddp_config.overlap_param_gather:
        for bucket_group in chunk.bucket_groups:  # which a reduction of gradients would do, if there was one since the last gather
            bucket_group.param_gather_dispatched = False
        chunk.enable_forward_pre_hook()


def finish_gather(chunk: Any) -> None:
    """The weights are whole on return, for whoever reads them outside of a pass. Collective over data parallelism."""
    if chunk.remove_forward_pre_hook_handles:
        for bucket_group in reversed(chunk.bucket_groups):  # the first layers are in the last
            bucket_group.finish_param_sync()
        chunk.disable_forward_pre_hook(param_sync=False)
