#!/usr/bin/env bash
# One arm of the quickstart, started by run.sh: ATESD with one exposure mode on one task → Hugging Face → evaluation.
#
#   arm.sh TASK MODE
#
# Mode aligned gets two processes: tensor-parallel when it trains, data-parallel when it is evaluated. The other modes get one.
# All that they say goes to log.txt in the arm's folder; when one fails, its last lines are shown, and 255 tells xargs to start no more.
set -euo pipefail
task=$1 mode=$2
suffix=$([ "$task" = late ] || echo "-$task")
data=$OUT/data$suffix run=$OUT/$mode$suffix
processes=$([ "$mode" = aligned ] && echo 2 || echo 1)
settings=(--config examples/quickstart/atesd.yaml)
if [ "$mode" = learned ]; then settings+=(--config examples/quickstart/paper.yaml); fi
adapters=() merge=()
if [ "${LORA:-0}" = 1 ]; then adapters=(--lora.rank 16 --optimizer.lr 5.0e-3) merge=(--merge); fi

say() { printf '[%s] %s\n' "$(date +%H:%M:%S)" "$*"; }
start() {
    if [ "$processes" = 1 ]; then "$PYTHON" "$@"; else "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$processes" "$@"; fi
}
train() {
    start tools/train.py "${settings[@]}" --exposure.mode "$mode" --parallel.tensor "$processes" --run.dir "$run" --run.seed "$SEED" \
        "${adapters[@]}" --run.updates "$UPDATES" --model.path "$OUT/base-megatron" --data.train "$data/train.jsonl" --data.probe "$data/probe.jsonl"
}
convert() { "$PYTHON" checkpoints_convert/megatron_to_hf.py --megatron "$run" --out "$run/hf" "${merge[@]}" --verify; }
evaluate() { start tools/evaluate.py --model "$run/hf" --data "$data/test.jsonl" --out "$run/evaluation" $EVALUATION; }

rm -rf "$run" && mkdir -p "$run"
say "$task, exposure mode $mode: start (processes: $processes; log: $run/log.txt)"
for step in train convert evaluate; do
    if ! $step >>"$run/log.txt" 2>&1; then
        tail -n 30 "$run/log.txt" >&2
        echo "error: $task, exposure mode $mode: failed to $step; the lines above are the end of $run/log.txt" >&2
        exit 255
    fi
done
say "$task, exposure mode $mode: done in $SECONDS s"
