#!/usr/bin/env bash
# launch.sh RECIPE.yaml [--section.key value …]: what the launchers of this folder share.
#
# Within torchrun it is one rank's training process. Without, it starts torchrun on this node: of one node, or of several, which
# it finds by these variables (Slurm's in their stead inside a Slurm job step of one task a node):
#
#   NNODES, NODE_RANK        nodes, and which one this is (SLURM_NNODES, SLURM_NODEID)
#   MASTER_ADDR              host name of node 0 (first of SLURM_JOB_NODELIST); MASTER_PORT, default 29500, with
#                            Slurm 20000 and the last digits of the job's number; jobs that share node 0 need different ones
#   LOCAL_ADDR               address of this node for the others, where they cannot resolve the name that it gives itself (hostname -f)
#   GPUS_PER_NODE            processes a node (SLURM_GPUS_ON_NODE); default: one for each GPU
#   MAX_RESTARTS             new starts after a failure, each from the newest valid checkpoint; default 0: they also follow a bad setting
#   JOB_ID                   the same on all nodes; with one of its own (SLURM_JOB_ID) no node of another job can join by mistake
#   JOIN_MINUTES             how long nodes wait for the others, at the start and after a loss; default 10
#
# A node that is lost: with MAX_RESTARTS > 0 the others wait for it. Start it, or another in its place, with the same command, and all
# go on from the newest checkpoint. Node 0 is the meeting point: without it the others end at once, and the job has to be started anew.
set -euo pipefail
train="$(dirname "${BASH_SOURCE[0]}")/../tools/train.py"
settings=(--config "$@")
python=${PYTHON:-python3}
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1} # lets tensor-parallel communication overlap with the gradients
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

fail() { echo "error: $1" >&2; exit 2; }
# check_number NAME VALUE LEAST [MOST]
check_number() {
    [[ $2 =~ ^(0|[1-9][0-9]{0,7})$ ]] && (($2 >= $3 && $2 <= ${4:-$2})) || fail "$1 is '$2', must be a whole number, $3 ${4:+to }${4:-or more}"
}
# Not RANK: some cluster operators set it for a whole node.
started_by_torchrun() { [ -n "${TORCHELASTIC_RUN_ID:-}" ]; }
asks_for_help() { for word in "$@"; do case $word in -h | --help) return 0 ;; esac; done; return 1; }
first_slurm_host() { scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1; }

if started_by_torchrun || asks_for_help "$@"; then
    exec "$python" -u "$train" "${settings[@]}"
fi

trap '' USR1 # Slurm's warning before the time limit goes to every process: it is meant for the ranks, which save and end
nodes=${NNODES:-${SLURM_NNODES:-1}} ranks=${GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-gpu}} restarts=${MAX_RESTARTS:-0}
check_number NNODES "$nodes" 1
[ "$ranks" = gpu ] || check_number GPUS_PER_NODE "$ranks" 1
check_number MAX_RESTARTS "$restarts" 0
tasks=${SLURM_STEP_NUM_TASKS:-1}
[ "$tasks" -le "${SLURM_STEP_NUM_NODES:-1}" ] ||
    fail "Slurm runs this $tasks times on ${SLURM_STEP_NUM_NODES:-1} node(s), but once is enough for all GPUs of a node; give srun --ntasks-per-node=1"
options=(--nproc-per-node "$ranks" --max-restarts "$restarts")
if [ "$nodes" = 1 ]; then
    [ "${NODE_RANK:-0}" = 0 ] || fail "NODE_RANK is $NODE_RANK, but NNODES is ${NNODES:-not set}; give the number of nodes"
    options+=(--standalone)
else
    node=${NODE_RANK:-${SLURM_NODEID:-}}
    [ -n "$node" ] || fail "NNODES is $nodes, but NODE_RANK is not set; give each node its number, 0 to $((nodes - 1))"
    check_number NODE_RANK "$node" 0 $((nodes - 1))
    master=${MASTER_ADDR:-${SLURM_JOB_NODELIST:+$(first_slurm_host)}}
    [ -n "$master" ] || fail "NNODES is $nodes, but MASTER_ADDR is not set; give the host name of node 0 on every node"
    port=${MASTER_PORT:-$((${SLURM_JOB_ID:-0} ? 20000 + ${SLURM_JOB_ID:-0} % 10000 : 29500))}
    check_number MASTER_PORT "$port" 1 65535
    check_number JOIN_MINUTES "${JOIN_MINUTES:-10}" 1
    options+=(--nnodes "$nodes" --rdzv-backend c10d --rdzv-endpoint "$master:$port")
    [ -z "${LOCAL_ADDR:-}" ] || options+=(--local-addr "$LOCAL_ADDR")
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # else a restarted rank finds the addresses of those before it
    # Node 0 opens the meeting point, whatever names its machine goes by; the others may come first (read_timeout: until it is there).
    seconds=$((60 * ${JOIN_MINUTES:-10}))
    meeting="is_host=$([ "$node" = 0 ] && echo true || echo false),join_timeout=$seconds,read_timeout=$seconds"
    options+=(--rdzv-id "${JOB_ID:-${SLURM_JOB_ID:-atesd}}" --rdzv-conf "$meeting")
fi
exec "$python" -m torch.distributed.run "${options[@]}" "$train" "${settings[@]}"
