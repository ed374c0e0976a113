#!/usr/bin/env bash
# The whole job on a CPU: data → warm start → HF → Megatron → ATESD (TP=2) → HF → evaluation → picture.
#
#   bash examples/quickstart/run.sh              (or: make quickstart)
#   SEED=2 ARMS="learned fixed random" OUT=runs/quickstart-2 bash examples/quickstart/run.sh
#
# SEED changes everything that is random; ARMS are the exposure modes to train; the warm-started base of a seed is cached in CACHES.
# UPDATES, WARM_UPDATES, TEST_PROBLEMS and SAMPLES make the job smaller or larger.
set -euo pipefail
cd "$(dirname "$0")/../.."

SEED=${SEED:-1}
ARMS=${ARMS:-learned}
OUT=${OUT:-runs/quickstart}
SAMPLES=${SAMPLES:-4}
UPDATES=${UPDATES:-100}
TEST_PROBLEMS=${TEST_PROBLEMS:-210}
WARM_UPDATES=${WARM_UPDATES:-1500}
CACHES=${CACHES:-runs/cache}
PYTHON=${PYTHON:-python3}
recipe=$(cat examples/quickstart/{warm_start*,tokenizer}.py megatron_atesd/{data,data/sources,model,rollout,evaluate}/*.py megatron_atesd/train/{sft,optimizer}.py | cksum | cut -d' ' -f1)
CACHE=$CACHES/chain-seed$SEED-warm$WARM_UPDATES-test$TEST_PROBLEMS-$recipe
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

say() { printf '\n\033[1m[%s] %s\033[0m\n' "$(date +%H:%M:%S)" "$*"; }
two() { "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node 2 "$@"; }
evaluate() { # model folder, output folder
    two tools/evaluate.py --model "$1" --data "$OUT/data/test.jsonl" --out "$2" --samples "$SAMPLES" --seed "$SEED" \
        --config examples/quickstart/atesd.yaml --parallel.tensor 1 --temperature 1.0 --top-p 1.0 --max-new-tokens 48 --no-thinking
}

# What is there is made anew: never in a folder that something else made.
if [ -n "$(ls -A "$OUT" 2>/dev/null)" ] && [ ! -f "$OUT/.example" ]; then
    echo "error: OUT=$OUT holds files that this script did not make; choose another folder" >&2
    exit 2
fi

started=$(date +%s)
mkdir -p "$OUT" && touch "$OUT/.example"
rm -rf "$OUT"/summary.json "$OUT"/report.png

if [ ! -d "$CACHE/base-hf" ]; then
    say "data: chains of arithmetic modulo 23, three splits that share no problem"
    "$PYTHON" tools/prepare_data.py chain --out "$CACHE/data" --test "$TEST_PROBLEMS" --seed "$SEED" --references det
    say "warm start: a base model with a bad habit, from random weights (cached afterwards)"
    two -m examples.quickstart.warm_start --data "$CACHE/data" --out "$CACHE/warm" --seed "$SEED" --updates "$WARM_UPDATES"
    say "export the base to Hugging Face"
    "$PYTHON" checkpoints_convert/megatron_to_hf.py --megatron "$CACHE/warm" --out "$CACHE/base-hf" --verify
fi

rm -rf "$OUT/data" "$OUT/base-megatron"
cp -r "$CACHE/data" "$OUT/data"
say "convert Hugging Face → Megatron"
"$PYTHON" checkpoints_convert/hf_to_megatron.py --hf "$CACHE/base-hf" --out "$OUT/base-megatron" --verify
if [ ! -f "$CACHE/evaluation-$SAMPLES/evaluation.json" ]; then
    say "evaluate the base"
    evaluate "$OUT/base-megatron" "$CACHE/evaluation-$SAMPLES"
fi
rm -rf "$OUT/base" && cp -r "$CACHE/evaluation-$SAMPLES" "$OUT/base"

for arm in $ARMS; do
    say "ATESD, exposure mode $arm, tensor-parallel on two processes"
    rm -rf "${OUT:?}/$arm"
    two tools/train.py --config examples/quickstart/atesd.yaml --run.dir "$OUT/$arm" --run.seed "$SEED" --run.updates "$UPDATES" --exposure.mode "$arm" \
        --model.path "$OUT/base-megatron" --data.train "$OUT/data/train.jsonl" --data.probe "$OUT/data/probe.jsonl"
    say "convert Megatron → Hugging Face and evaluate"
    "$PYTHON" checkpoints_convert/megatron_to_hf.py --megatron "$OUT/$arm" --out "$OUT/$arm/hf" --verify
    evaluate "$OUT/$arm/hf" "$OUT/$arm/evaluation"
done

say "summary"
"$PYTHON" -m examples.quickstart.summarize --out "$OUT" --arms $ARMS --seconds $(($(date +%s) - started))
