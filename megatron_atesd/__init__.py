"""Adaptive Teacher Exposure for Self-Distillation on Megatron-Core. Start reading at train/loop.py."""

import warnings

# megatron.core announces on every import, in every process, that optional GPU libraries are absent; a CPU user can do nothing about it.
warnings.filterwarnings("ignore", message=".*(Transformer Engine and Apex are|Apex is) not installed.*", category=UserWarning)
