#!/usr/bin/env bash
# The whole job on a CPU: data → warm start → HF → Megatron → ATESD (TP=2) → HF → evaluation → picture; two tasks from one base.
#
#   bash examples/quickstart/run.sh              (or: make quickstart)
#   ARMS=aligned TASKS=late bash examples/quickstart/run.sh                      the short job
#   SEED=2 ARMS="aligned posterior" OUT=runs/quickstart-2 bash examples/quickstart/run.sh
#
# TASKS are kinds of references (late det lateh rand), ARMS exposure modes to train on each; the first of both gives the headline figures.
# SEED changes everything that is random; the warm-started base of a seed is cached in CACHES.
# LORA=1 trains adapters on the frozen base instead of all weights, and merges them into it before the evaluation.
# UPDATES, WARM_UPDATES, TEST_PROBLEMS and SAMPLES make the job smaller or larger.
set -euo pipefail
cd "$(dirname "$0")/../.."

SEED=${SEED:-1}
TASKS=${TASKS:-late det}
ARMS=${ARMS:-aligned fixed random learned}
OUT=${OUT:-runs/quickstart}
SAMPLES=${SAMPLES:-4}
UPDATES=${UPDATES:-100}
TEST_PROBLEMS=${TEST_PROBLEMS:-210}
WARM_UPDATES=${WARM_UPDATES:-1500}
CACHES=${CACHES:-runs/cache}
PYTHON=${PYTHON:-python3}
recipe=$(cat examples/quickstart/{warm_start*,tokenizer}.py megatron_atesd/{data,data/sources,model,rollout,evaluate}/*.py megatron_atesd/train/{sft,optimizer}.py | cksum | cut -d' ' -f1)
CACHE=$CACHES/chain-seed$SEED-warm$WARM_UPDATES-test$TEST_PROBLEMS-$recipe
EVALUATION="--samples $SAMPLES --seed $SEED --config examples/quickstart/atesd.yaml --parallel.tensor 1 --temperature 1.0 --top-p 1.0
    --max-new-tokens 48 --no-thinking"
export LORA=${LORA:-0}
export SEED OUT UPDATES EVALUATION PYTHON # arm.sh reads them
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

say() { printf '\n\033[1m[%s] %s\033[0m\n' "$(date +%H:%M:%S)" "$*"; }
fail() { echo "error: $*" >&2 && exit 2; }
two() { "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node 2 "$@"; }
folder() { if [ "$2" = late ]; then echo "$OUT/$1"; else echo "$OUT/$1-$2"; fi; } # the name without suffix is the task late's
prepare() { "$PYTHON" tools/prepare_data.py chain --out "$1" --test "$TEST_PROBLEMS" --seed "$SEED" --references "$2"; }
pairs() { # of a task and one of the given arms
    for task in $TASKS; do for arm in "$@"; do echo "$task" "$arm"; done; done
}

for task in $TASKS; do
    case $task in late | det | lateh | rand) ;; *) fail "TASKS has '$task', must be of late, det, lateh and rand" ;; esac
done
for arm in $ARMS; do
    case $arm in
        aligned | posterior | learned | target_kl | fixed | linear | cosine | step | random | none) ;;
        *) fail "ARMS has '$arm', must be of aligned, posterior, learned, target_kl, fixed, linear, cosine, step, random and none" ;;
    esac
done
# What is there is made anew: never in a folder that something else made.
if [ -n "$(ls -A "$OUT" 2>/dev/null)" ] && [ ! -f "$OUT/.example" ]; then
    fail "OUT=$OUT holds files that this script did not make; choose another folder"
fi

case $LORA in 0 | 1) ;; *) fail "LORA is '$LORA', must be 0 or 1" ;; esac

started=$(date +%s)
mkdir -p "$OUT" && touch "$OUT/.example"
rm -rf "$OUT"/summary.json "$OUT"/report.png

say "data: chains of arithmetic modulo 23, three splits that share no problem; a task changes only how references are written"
for task in $TASKS; do
    rm -rf "$(folder data "$task")" && prepare "$(folder data "$task")" "$task"
done
if [ ! -d "$CACHE/base-hf" ]; then
    say "warm start: a base model with a bad habit, from random weights (cached afterwards)"
    prepare "$CACHE/data" det
    two -m examples.quickstart.warm_start --data "$CACHE/data" --out "$CACHE/warm" --seed "$SEED" --updates "$WARM_UPDATES"
    say "export the base to Hugging Face"
    "$PYTHON" checkpoints_convert/megatron_to_hf.py --megatron "$CACHE/warm" --out "$CACHE/base-hf" --verify
fi

say "convert Hugging Face → Megatron"
rm -rf "$OUT/base-megatron"
"$PYTHON" checkpoints_convert/hf_to_megatron.py --hf "$CACHE/base-hf" --out "$OUT/base-megatron" --verify
if [ ! -f "$CACHE/evaluation-$SAMPLES/evaluation.json" ]; then
    say "evaluate the base"
    two tools/evaluate.py --model "$OUT/base-megatron" --data "$CACHE/data/test.jsonl" --out "$CACHE/evaluation-$SAMPLES" $EVALUATION
fi
rm -rf "$OUT/base" && cp -r "$CACHE/evaluation-$SAMPLES" "$OUT/base"

say "ATESD from that base, $UPDATES updates an arm; aligned exposure tensor-parallel on two processes, other modes on one, two side by side"
pairs $ARMS | { grep ' aligned$' || true; } | xargs -r -L 1 bash examples/quickstart/arm.sh || exit 1
pairs $ARMS | { grep -v ' aligned$' || true; } | xargs -r -P 2 -L 1 bash examples/quickstart/arm.sh || exit 1

say "summary"
"$PYTHON" -m examples.quickstart.summarize --out "$OUT" --tasks $TASKS --arms $ARMS --seconds $(($(date +%s) - started))
