"""What a training says of itself at its start: model, layout, what an update is, data, where to look, how to stop."""

import os
import shlex

import torch

from megatron_atesd.config import LORA_TARGETS, OPTIMIZER_DEFAULTS, ExposureConfig, LoraConfig, ParallelConfig, TrainConfig
from megatron_atesd.config.signals import probe_interval
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.counts import layer_adapters, model_parameters
from megatron_atesd.report.console_lines import labelled_lines
from megatron_atesd.train.checks import TrainingInputs

DECIDING = ("learned", "aligned", "posterior", "target_kl", "random")  # modes that choose anew in each window


def banner(config: TrainConfig, inputs: TrainingInputs, segments: str, width: int | None) -> str:
    """Lines for a person, inside the process groups. segments: of the references; width: of the terminal, None where there is none."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    rows = [
        ("model", f"{config.model.path}: {model_text(inputs.model.architecture, config)}"),
        ("layout", layout_text(config.parallel, processes, int(os.environ.get("LOCAL_WORLD_SIZE", processes)), device())),
        ("update", update_text(config)),
        ("teacher", f"{config.distill.teacher} weights, {exposure_text(config.exposure)}"),
        ("loss", loss_text(config)),
        ("data", data_text(config, inputs, segments)),
        ("run", run_text(config)),
        *look_rows(config),
        ("stop", "SIGTERM or SIGUSR1 saves and ends the run; the same command goes on"),
    ]
    return labelled_lines(rows, width)


def size_text(parameters: int) -> str:
    """`1.72 B`, `0.365 M`."""
    return f"{parameters / 1e9:.3g} B" if parameters >= 1e9 else f"{parameters / 1e6:.3g} M"


def model_text(arch: Architecture, config: TrainConfig) -> str:
    """Family, size, type, and what of it learns."""
    learns = adapters_text(arch, config.lora) if config.lora.rank else "all weights"
    return f"{arch.family}, {arch.layers} layers, {size_text(model_parameters(arch))} parameters, {config.model.dtype}, {learns}"


def adapters_text(arch: Architecture, lora: LoraConfig) -> str:
    """The adapters that learn, and on what."""
    count = arch.layers * layer_adapters(arch, lora.targets, lora.rank, tensor=1)
    on = "" if set(lora.targets) == set(LORA_TARGETS) else f" on {', '.join(lora.targets)}"
    return f"adapters of rank {lora.rank}{on} ({size_text(count)})"


def layout_text(parallel: ParallelConfig, processes: int, on_a_node: int, device: str) -> str:
    """How the processes divide the model and the problems."""
    sizes = {"TP": parallel.tensor, "PP": parallel.pipeline, "VP": parallel.virtual_pipeline, "CP": parallel.context}
    data = processes // (parallel.tensor * parallel.pipeline * parallel.context)
    product = " × ".join(f"{name} {size}" for name, size in [*sizes.items(), ("DP", data)] if size > 1 or name == "DP")
    extra = [name for name, used in (("sequence-parallel", parallel.sequence), ("packed", parallel.packed)) if used]
    nodes = -(-processes // on_a_node)
    places = f"{processes} process{'es' if processes > 1 else ''} on {f'{nodes} nodes, ' if nodes > 1 else ''}{device}"
    return ", ".join([f"{places}: {product}", *extra])


def device() -> str:
    """The name of this rank's device."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def update_text(config: TrainConfig) -> str:
    """What the student does in an update."""
    return (
        f"{config.data.batch} problems, one response each, at most {config.rollout.max_new_tokens:,} tokens, by engine {config.engine.name}"
    )


def exposure_text(exposure: ExposureConfig) -> str:
    """What the teacher sees."""
    if exposure.mode == "none":
        return "who sees what the student sees"
    whose = "" if exposure.reference == "own" else f" of {exposure.reference} references"
    if exposure.mode == "fixed":
        alpha = "/".join(f"{alpha:g}" for alpha in exposure.fixed_by_bin) if exposure.bins > 1 else f"{exposure.fixed:g}"
        return f"exposure{whose} fixed at {alpha}"
    if exposure.mode not in DECIDING:
        return f"exposure{whose} by schedule {exposure.mode}"
    follows = {"target_kl": f" {exposure.target_kl:g}", "random": ""}.get(exposure.mode, f" on {exposure.progress}")
    bins = f", in {exposure.bins} difficulty bins" if exposure.bins > 1 else ""
    return f"exposure{whose} {exposure.mode}{follows}, chosen {often(exposure.hold)}{bins}"


def often(updates: int) -> str:
    """`each update`, `every 5 updates`."""
    return "each update" if updates == 1 else f"every {updates} updates"


def loss_text(config: TrainConfig) -> str:
    """The loss, its clip and target, and the learning rate."""
    distill = config.distill
    clip = f"clip by {distill.clip_mode} at {distill.clip:g}" if distill.clip else "no clip"
    target = "" if distill.target == "teacher" else f", target {distill.target} {distill.mix_weight:g}"
    rate = config.optimizer.get("lr", OPTIMIZER_DEFAULTS["lr"])
    return f"{distill.divergence}, {clip}{target}, mean over {distill.normalize}s; lr {rate:g}"


def data_text(config: TrainConfig, inputs: TrainingInputs, segments: str) -> str:
    """How many problems there are, and how finely their references can be shown."""
    probe = f"{len(inputs.probe_problems):,} to probe, {often(probe_interval(config.exposure))}"
    return f"{len(inputs.problems):,} problems, segments {segments}; {probe}"


def run_text(config: TrainConfig) -> str:
    """How long it is, and when it is saved."""
    every = config.checkpoint.every
    saves = f"every {every} and at the end" if every else "at the end"
    return f"{config.run.updates} updates from seed {config.run.seed}, saved {saves}"


def look_rows(config: TrainConfig) -> list[tuple[str, str]]:
    """Where what it does can be seen; a command stands in a row of its own, to be copied."""
    folder = config.run.dir
    rows = [("look", f"{folder}: metrics.jsonl, checkpoints/, at the end summary.json")]
    return rows + ([("", f"tensorboard --logdir {shlex.quote(folder)}")] if config.monitor.tensorboard else [])
