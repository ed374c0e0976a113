"""Memory, time and layout of a recipe before GPUs are rented: predicted from formulas, on any machine, in seconds.

python tools/plan.py --config examples/atesd_qwen3_8b.yaml --model-shape 8b --gpus 8 --gpu h100 [--section.key value …]

Weights, gradients and optimizer state equal what megatron.core allocates, activations and KV cache are within five percent of what a CPU
run keeps (tests/unit/test_plan_*.py). Times rest on data sheets and on the assumptions that are printed; no GPU has confirmed them.
--evaluate 90x12 adds what an evaluation (tools/evaluate.py) of so many problems with so many samples each takes with each engine.
--dry-run also builds and walks a rank of each kind of pipeline stage on the meta device and prints what it holds and sends.
Exit code 1: does not fit.
"""

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from megatron_atesd.config import TrainConfig, fp8_recipe, layout_problems, load_config, parallel_problems, refuse, section_problems
from megatron_atesd.config.lora_rules import lora_problems
from megatron_atesd.errors import ConfigError, run_command
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.paths import user_path
from megatron_atesd.plan import tables
from megatron_atesd.plan.evaluation import Evaluation, evaluation_lines, evaluation_table, evaluation_values, plan_evaluations
from megatron_atesd.plan.hardware import GPUS, Assumptions
from megatron_atesd.plan.planned_update import Lengths, planned_update
from megatron_atesd.plan.published import QWEN3
from megatron_atesd.plan.search import best_plan, make_plan

WIDTH = 120  # of the tables where the output is no terminal


def main() -> None:
    args, settings = parse()
    config, arch = read(args, settings)
    asked = evaluation(args, arch)
    gpu, assume = GPUS[args.gpu], Assumptions(args.mfu)
    work = planned_update(config, arch, args.gpus, Lengths.of(config, args.student_tokens, args.teacher_tokens, args.response_tokens))
    plan, best = make_plan(work, gpu, assume), best_plan(work, gpu, assume)
    print_ = Console(width=max(WIDTH, Console().width), soft_wrap=True).print
    print_(tables.layout_text(work), tables.memory_table(plan, gpu), tables.time_table(plan), sep="\n")
    once, fit = tables.sorting_text(plan, gpu, assume), tables.fit_text(plan, gpu, args.gpu, assume)
    print_(once + fit + tables.suggestion_text(plan, best, gpu, assume))
    print_(*tables.assumption_lines(plan, gpu, assume), sep="\n")
    evaluations = plan_evaluations(work, asked, gpu, assume) if asked else []
    if asked:
        print_("", evaluation_table(evaluations, asked), *evaluation_lines(work, asked, assume), sep="\n")
    runs = walk(config, arch, args.gpus, print_) if args.dry_run else []
    if args.json:
        values = {"gpu": args.gpu, "plan": tables.plan_values(plan), "suggested": best and tables.plan_values(best)}
        values |= {"evaluation": evaluation_values(evaluations, asked)} if asked else {}
        write(args.json, values | {"dry_run": [asdict(run) for run in runs]})
    if plan.peak > gpu.memory:
        raise SystemExit(1)


def write(path: Path, values: dict[str, Any]) -> None:
    """JSON into a file. Raises ConfigError where it cannot be written."""
    try:
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--json is {path}, which cannot be written ({error.strerror}); give a file in a folder that exists") from None


def walk(config: TrainConfig, arch: Architecture, gpus: int, print_: Callable[..., None]) -> list[Any]:
    """Dry runs of a rank of each kind of stage, printed."""
    from megatron_atesd.plan.dry_run import DryRank, Shapes, dry_runs, stage_ranks  # slow to import: torch, megatron.core
    from megatron_atesd.plan.dry_run_table import dry_run_table

    runs = dry_runs([DryRank(config, arch, gpus, rank, Shapes.of(config)) for rank in stage_ranks(config, gpus)])
    print_(dry_run_table(runs))
    return runs


def parse() -> tuple[argparse.Namespace, list[str]]:
    """The command's own options, and the settings for load_config."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("--gpus", type=int, required=True, metavar="N", help="GPUs of the whole job")
    add("--gpu", choices=tuple(GPUS), required=True)
    add("--model-shape", choices=tuple(QWEN3), help="a published Qwen3 size; without it the folder model.path is read")
    add("--student-tokens", type=int, metavar="N", help="length of a student's prompt (default 256)")
    add("--teacher-tokens", type=int, metavar="N", help="length of a teacher's prompt (default: half of prompt.max_length)")
    add("--response-tokens", type=int, metavar="N", help="length of a response (default rollout.max_new_tokens)")
    add("--mfu", type=float, default=Assumptions.utilization, help=f"assumed model FLOPs utilization (default {Assumptions.utilization})")
    add("--evaluate", metavar="NxK", help="also plan an evaluation of N problems with K samples and a greedy response each, such as 90x12")
    add("--evaluate-tokens", type=int, default=38912, metavar="N", help="its --max-new-tokens (default 38912)")
    add(
        "--evaluate-share",
        type=float,
        default=0.4,
        metavar="X",
        help="length of its mean response as a share of that (default 0.4: a guess)",
    )
    add("--dry-run", action="store_true", help="build and walk a rank of each kind as well")
    add("--json", type=user_path, metavar="FILE", help="also write everything to this file")
    return parser.parse_known_args()


def read(args: argparse.Namespace, settings: list[str]) -> tuple[TrainConfig, Architecture]:
    """The configuration and the model's shape, once they fit each other and the number of GPUs."""
    numbers = {"--gpus": args.gpus, "--student-tokens": args.student_tokens, "--teacher-tokens": args.teacher_tokens}
    for name, value in (numbers | {"--response-tokens": args.response_tokens}).items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}, must be 1 or more")
    if not 0 < args.mfu <= 1:
        raise ConfigError(f"--mfu is {args.mfu}, must be greater than 0 and at most 1")
    config = load_config(settings)
    if (optimizer := config.optimizer.get("optimizer", "adam")) != "adam":
        raise ConfigError(f"optimizer.optimizer is {optimizer}, but the plan knows the state of adam only; set it to adam to plan")
    if config.megatron.get("pipeline_model_parallel_layout"):
        raise ConfigError("megatron.pipeline_model_parallel_layout is set, but the plan divides layers evenly; leave it out to plan")
    sections = ("lora", "parallel", "data", "prompt", "rollout", "engine", "distill", "exposure")
    refuse(section_problems(config, sections) or [*lora_problems(config), *parallel_problems(config, args.gpus)])
    arch = QWEN3[args.model_shape] if args.model_shape else from_folder(config.model.path)
    refuse(layout_problems(config.parallel, args.gpus, arch.shape))
    check_fp8(args.gpu, config)
    lengths = Lengths.of(config, args.student_tokens, args.teacher_tokens, args.response_tokens)
    if (longest := max(lengths.student, lengths.teacher) + lengths.response) > arch.max_positions:
        raise ConfigError(
            f"prompt and response are {longest} tokens together, but the model has {arch.max_positions} positions; plan for shorter ones"
        )
    return config, arch


def evaluation(args: argparse.Namespace, arch: Architecture) -> Evaluation | None:
    """What --evaluate asks for, if it is given."""
    if args.evaluate is None:
        return None
    if not (match := re.fullmatch(r"0*([1-9]\d{0,8})x0*([1-9]\d{0,8})", args.evaluate)):
        raise ConfigError(f"--evaluate is {args.evaluate}, must be problems x samples, such as 90x12")
    if args.evaluate_tokens < 1:
        raise ConfigError(f"--evaluate-tokens is {args.evaluate_tokens}, must be 1 or more")
    if not 0 < args.evaluate_share <= 1:
        raise ConfigError(f"--evaluate-share is {args.evaluate_share}, must be greater than 0 and at most 1")
    if args.evaluate_tokens >= arch.max_positions:
        raise ConfigError(f"--evaluate-tokens is {args.evaluate_tokens}, must be below the model's {arch.max_positions} positions")
    return Evaluation(int(match[1]), int(match[2]), args.evaluate_tokens, args.evaluate_share)


def check_fp8(gpu: str, config: TrainConfig) -> None:
    """Raise ConfigError for an FP8 recipe that this GPU does not compute."""
    for role, precision in asdict(config.precision).items():
        if (wanted := fp8_recipe(precision)) and wanted not in GPUS[gpu].fp8:
            able = ", ".join(f"fp8_{name}" for name in GPUS[gpu].fp8) or "no FP8"
            raise ConfigError(f"precision.{role} is {precision}, but on {gpu} there is {able}; choose one of these or bf16")


def from_folder(path: str) -> Architecture:
    """Shape of the model in model.path."""
    if not Path(path).is_dir():
        raise ConfigError(f"model.path is {path!r}, which is no folder; give the model's folder, or --model-shape for a published size")
    from megatron_atesd.checkpoint.model_folder import find_hf
    from megatron_atesd.model.hf_config import read_architecture  # slow to import: torch, megatron.core

    return read_architecture(find_hf(Path(path)))


if __name__ == "__main__":
    run_command(main)
