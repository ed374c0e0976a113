"""Time and memory of one self-distillation step: full fine-tuning, forward KL over the whole vocabulary, frozen teacher.

python tools/bench_distill.py --only W2 --trl-python OTHER_ENVIRONMENT/bin/python --out bench.json

ours: this engine · naive: this engine with whole logits and autograd in the loss · plain: PyTorch and transformers · trl: SDFTTrainer.
Each runs in a process of its own, from the same weights, on the same token ids; loss and gradient norm of the first step are printed.
Phases: teacher = its layers forward; student = its layers forward and backward; loss = both vocabulary projections and the
divergence, forward and backward (seen by hooks on the loss and on the student's hidden states); optimizer = clipping and AdamW.
training = teacher + student + loss. Rollouts are drawn beforehand; only trl generates (its own column), then gets the same responses.
Memory: peak of the measured steps over the process before the model (resident; with CUDA what torch allocated there).
Ratios (÷) are value / the baseline's: below 1 is faster or smaller. Share of peak: FLOPs of products only (benchmarks/flops.py) over the
best matmul speed seen in the run. In bf16, ours and naive keep fp32 master weights and gradients; plain and trl hold weights, gradients
and optimizer state in bf16, and trl forms its softmax in bf16 too. Part loss: distill_loss (fused; compiled: by torch.compile, whose
own memory counts as well), whole logits (dense), the four products alone.

--lora: ours-lora and trl-lora train adapters on all projections, from the same A, with the base as teacher, against ours, which trains
all weights; the loss part is then that of a frozen head (fused-frozen) against that of a head that learns (fused), and the three products
against the four. In bf16 our adapters are bf16 with fp32 master weights, PEFT's are fp32.
"""

import argparse
import json
from pathlib import Path

from rich.console import Console

from benchmarks.parts import loss_part, step_part
from benchmarks.settings import Settings, environment, numbers
from benchmarks.tables import WIDTH, loss_tables, step_tables
from benchmarks.workload import load_workloads
from megatron_atesd.errors import run_command
from megatron_atesd.paths import user_path, with_home


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--workloads", type=user_path, default=Path(__file__).parent / "benchmarks" / "workloads.json", help="JSON file of sizes by name")
    add("--only", default="W1,W2", metavar="NAME,…", help="workloads of that file (default W1,W2; '' = all)")
    add("--part", choices=("step", "loss", "all"), default="all", help="default all")
    add(
        "--contenders", metavar="NAME,…", help="contenders of part step (default ours,naive,plain,trl; with --lora ours-lora,ours,trl-lora)"
    )
    add("--dtypes", default="fp32,bf16", metavar="NAME,…", help="default fp32,bf16")
    add("--device", choices=("cpu", "cuda"), default=Settings().device, help="default: cuda if there is one")
    add(
        "--trl-python",
        type=with_home,
        default="",
        metavar="PATH",
        help="interpreter of an environment with trl 1.16, datasets and accelerate, for --lora peft too",
    )
    add("--baseline", metavar="NAME,…", help="contenders that the ratios refer to (default plain; with --lora ours,trl-lora)")
    add("--lora", action="store_true", help="measure adapters on a frozen base")
    add("--lora-rank", type=int, default=Settings.lora_rank, metavar="R", help=f"of the adapters (default {Settings.lora_rank})")
    add("--lora-alpha", type=float, default=Settings.lora_alpha, metavar="X", help=f"of the adapters (default {Settings.lora_alpha:g})")
    add("--tokens", default="256,512,1024,2048", metavar="T,…", help="response tokens of part loss")
    for name, text in (("threads", "of each process"), ("steps", "measured"), ("warmup", "steps before"), ("repeats", "of each process")):
        add(f"--{name}", type=int, default=getattr(Settings, name), help=f"{text} (default {getattr(Settings, name)})")
    add("--chunk", type=int, default=Settings.chunk, help=f"tokens whose logits exist at one time (default {Settings.chunk})")
    add("--out", type=user_path, help="also write everything to this JSON file")
    args = vars(parser.parse_args())
    workloads = load_workloads(args.pop("workloads"), args.pop("only"))
    part, out = args.pop("part"), args.pop("out")
    contenders, baselines = ("ours-lora,ours,trl-lora", "ours,trl-lora") if args["lora"] else ("ours,naive,plain,trl", "plain")
    given = (args["contenders"] or contenders, args["dtypes"], args.pop("baseline") or baselines)
    lists = {name: text.split(",") for name, text in zip(("contenders", "dtypes", "baselines"), given, strict=True)}
    settings = Settings(**{**args, **lists, "tokens": numbers(args["tokens"])})
    settings.check(out)
    progress = Console(stderr=True).print
    steps = step_part(workloads, settings, progress) if part != "loss" else []
    losses = loss_part(workloads, settings, progress) if part != "step" else []
    Console(width=max(WIDTH, Console().width)).print(*step_tables(steps, settings.baselines), *loss_tables(losses, settings.lora), sep="\n")
    if out:
        out.write_text(json.dumps({"environment": dict(environment(settings)), "step": steps, "loss": losses}, indent=2) + "\n")


if __name__ == "__main__":
    run_command(main)
