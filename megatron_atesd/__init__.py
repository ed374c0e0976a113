"""Adaptive Teacher Exposure for Self-Distillation on Megatron-Core. Start reading at train/loop.py."""

import warnings

# megatron.core says on every import, in every process, what a CPU user can do nothing about.
for _message in (".*(Transformer Engine and Apex are|Apex is) not installed.*", "full scope is deprecated.*"):
    warnings.filterwarnings("ignore", message=_message, category=UserWarning)
