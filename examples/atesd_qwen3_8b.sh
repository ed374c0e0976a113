#!/usr/bin/env bash
''':'
# ATESD on Qwen3-8B with the settings of the YAML file of the same name. Three ways to start it, from the repository root:
#
#   bash examples/atesd_qwen3_8b.sh [--section.key value …]                        one node, all its GPUs (or GPUS=4)
#   torchrun --nnodes 2 --nproc-per-node 8 … examples/atesd_qwen3_8b.sh            on every node
#   torchrun --nnodes 2 --nproc-per-node 8 … --no-python examples/atesd_qwen3_8b.sh
#
# With RESTARTS=3 in front of the first, or `--max-restarts 3` among the options of the others, a job that fails is started again, up to
# three times, and goes on from its newest checkpoint. On several nodes that needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in front of torchrun.
#
# Python reads these lines as one string and goes on below it.
set -euo pipefail
train="$(dirname "$0")/../tools/train.py"
settings=(--config "${0%.sh}.yaml" "$@")
python=${PYTHON:-python3}
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1} # lets tensor-parallel communication overlap with the gradients
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

started_by_torchrun() { [ -n "${RANK:-}" ]; }
asks_for_help() { for word in "$@"; do case $word in -h | --help) return 0 ;; esac; done; return 1; }

if started_by_torchrun || asks_for_help "$@"; then
    exec "$python" -u "$train" "${settings[@]}"
fi
exec "$python" -m torch.distributed.run --standalone --max-restarts "${RESTARTS:-0}" --nproc-per-node "${GPUS:-gpu}" "$train" "${settings[@]}"
'''
import os
import sys

os.environ["PYTHON"] = sys.executable
os.execvp("bash", ["bash", __file__, *sys.argv[1:]])
