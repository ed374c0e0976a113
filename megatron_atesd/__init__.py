"""Adaptive Teacher Exposure for Self-Distillation on Megatron-Core. Start reading at train/loop.py."""

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
