"""Speed and memory of whole training updates on GPUs, with random weights of a published shape, beside what they should be.

python tools/bench_gpu.py --shape 1.7b --out bench.json [--section.key value …]                       one GPU
torchrun --nproc-per-node 8 tools/bench_gpu.py --shape 8b --parallel.tensor 8 --parallel.sequence true
python tools/bench_gpu.py --shape 1.7b --also '--distill.compile true'                                two sets of settings in turn
python tools/bench_gpu.py --device cpu --shape tiny --model.dtype fp32 --rollout.max_new_tokens 32    tries the path, not the speed

Settings are those of training, on top of benchmarks/update.yaml (--config FILE, --section.key value). Every sequence is as long as allowed.
Phases: rollout = sampling with the training model; teacher and student = their layers (student: forward and backward); loss = vocabulary
projections and divergence, forward and backward; training = these three; optimizer = clipping, Adam, EMA teacher. The GPU is waited for
between phases. MFU: FLOPs of the products (benchmarks/flops.py) over the data sheet's dense bf16 speed (plan/hardware.py).
Loss part: distill_loss (forward KL, no clip) on all response tokens of a rank, without TP, over its four matrix products alone.
Peak: what torch allocated on the fullest GPU, over what tools/plan.py predicts without overhead; on a CPU the process's resident memory.
Targets are judged for shape 1.7b in bf16 on one GPU.
"""

import argparse
import os

from megatron_atesd.errors import run_command
from megatron_atesd.paths import user_path


def main() -> None:
    args, settings = parse()
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks
    from benchmarks import measure_updates  # slow to import: torch, megatron.core

    tokens, repeats = {"student": args.student_tokens, "teacher": args.teacher_tokens}, (args.steps, args.warmup)
    measure_updates.run(args.shape, settings, args.also, tokens, repeats, args.device, args.out)


def parse() -> tuple[argparse.Namespace, list[str]]:
    """The command's own options, and the settings for load_config."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("--shape", default="1.7b", help="a published Qwen3 size, such as 8b, or tiny (default 1.7b)")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="default cuda")
    add("--also", action="append", default=[], metavar="SETTINGS", help="settings to measure besides, over the others; may be repeated")
    add("--student-tokens", type=int, default=256, metavar="N", help="length of a student's prompt (default 256)")
    add("--teacher-tokens", type=int, default=1024, metavar="N", help="length of a teacher's prompt (default 1024)")
    add("--steps", type=int, default=5, help="measured updates (default 5)")
    add("--warmup", type=int, default=2, help="updates before (default 2)")
    add("--out", type=user_path, help="also write everything to this JSON file")
    return parser.parse_known_args()


if __name__ == "__main__":
    run_command(main)
