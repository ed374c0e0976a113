#!/usr/bin/env bash
''':'
# ATESD with LoRA on Qwen3-8B, with the settings of atesd_qwen3_8b_lora.yaml. From the repository root:
#
#   bash examples/atesd_qwen3_8b_lora.sh [--section.key value …]                     starts torchrun itself; launch.sh says on how many nodes
#   torchrun --nnodes 2 --nproc-per-node 8 … examples/atesd_qwen3_8b_lora.sh         on every node; with --no-python too
#
# Python reads these lines as one string and goes on below it.
launcher=$(readlink -f "$0") # it may be called through a link
exec bash "${launcher%/*}/launch.sh" "${launcher%.sh}.yaml" "$@"
'''
import os
import sys

os.environ["PYTHON"] = sys.executable
os.execvp("bash", ["bash", __file__, *sys.argv[1:]])
