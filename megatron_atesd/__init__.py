"""Adaptive Teacher Exposure for Self-Distillation on Megatron-Core. Start reading at train/loop.py."""

import logging
import warnings

# megatron.core says on every import, in every process, what a CPU user can do nothing about.
for _message in (
    ".*(Transformer Engine and Apex are|Apex is) not installed.*",
    "full scope is deprecated.*",
    "When using async grad allreduce it is recommended to set the environment variable CUDA_DEVICE_MAX_CONNECTIONS.*",
):
    warnings.filterwarnings("ignore", message=_message, category=UserWarning)
for _message in (
    "`load_state_dict` is deprecated.*",
    ".*deprecating ShardedTensor.*",
    "`torch.distributed.(all_gather_into|reduce_scatter)_tensor` is deprecated.*",
):
    warnings.filterwarnings("ignore", message=_message, category=FutureWarning)

# torch with CUDA, where the toolkit is but no GPU (a login node, say), on the import of a module that nobody here uses.
logging.getLogger("torch.utils.cpp_extension").addFilter(lambda record: not str(record.msg).startswith("No CUDA runtime is found"))

# And it calls deprecated, on every rank, what this project uses with reason: its own writer of checkpoints, common.pt (both are all that
# 0.16 knows), GPTModel (docs/hybrid_model.md), and parameters laid out by megatron.core itself.
_ON_PURPOSE = (
    "MCore's async save is deprecated",
    "load_common is deprecated",
    "GPTModel IS DEPRECATED",
    "DistributedDataParallel: full_param_layout not provided",
)


def _not_on_purpose(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_ON_PURPOSE)


for _module in (
    "dist_checkpointing.strategies.torch",
    "dist_checkpointing.strategies.common",
    "models.gpt.gpt_model",
    "distributed.distributed_data_parallel",
):
    logging.getLogger(f"megatron.core.{_module}").addFilter(_not_on_purpose)
