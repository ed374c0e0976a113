"""What a resumed run may change: what is listed here. Every other setting must stay, or the run would no longer be one experiment."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_atesd.checkpoint.base_model import base_model, check_base, record_of
from megatron_atesd.checkpoint.model_inputs import ModelInputs
from megatron_atesd.checkpoint.reading import read_plain_values
from megatron_atesd.config import OPTIMIZER_DEFAULTS, TrainConfig, fp8_recipe
from megatron_atesd.config.fields import RENAMED, spell
from megatron_atesd.data.sampler import ProblemSampler, fingerprint
from megatron_atesd.data.tokenizer import TOKENIZER_FILES
from megatron_atesd.errors import CheckpointError
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.megatron_config import MEGATRON_DEFAULTS
from megatron_atesd.train.checks import TrainingInputs
from megatron_atesd.train.evaluation_files import check_same_evaluations
from megatron_atesd.train.optimizer import DDP_DEFAULTS

# Settings, a * for any part of a name, and why they may change.
FREE = {
    "run.dir": "the checkpoint was found there, wherever it has been moved to",
    "run.max_skipped": "when to give up",
    "model.path": "the weights are the checkpoint's, or of a base under adapters compared by checksum; tokenizer and architecture too",
    "model.attention": "the same function by other kernels",
    "parallel.*": "layout, memory, patience: a checkpoint loads at any",
    "lora.start": "the adapters, and the teacher's, are the checkpoint's",
    "data.train": "compared by content",
    "data.probe": "compared by content",
    "data.probe_size": "compared by content",
    "data.on_error": "compared by content",
    "engine.batch": "memory: a response does not depend on the others of its batch",
    "engine.cache_gib": "memory",
    "engine.checked": "measurement",
    "distill.chunk": "memory",
    "distill.compile": "speed",
    "distill.teacher_offload": "memory",
    "exposure.bias_check": "done before the first update, and leaves nothing behind",
    "checkpoint.*": "what is kept of the run",
    "monitor.*": "what is shown of the run",
    "eval.files": "measurement; files evaluated before are compared by content",
    **dict.fromkeys(
        (f"eval.{name}" for name in ("samples", "seed", "temperature", "top_k", "top_p", "max_new_tokens", "engine", "thinking")),
        "measurement; compared with how earlier evaluations were made, if there are any",
    ),
    "health.*": "what is said of the run, and when to give up",
    "megatron.recompute_*": "memory",
    "megatron.distribute_saved_activations": "memory",
    "megatron.fine_grained_activation_offloading": "memory",
    "megatron.offload_modules": "memory",
    "megatron.min_offloaded_tensor_size": "memory",
    "megatron.deallocate_pipeline_outputs": "memory",
    "megatron.num_layers_in_*_pipeline_stage": "layout",
    "megatron.pipeline_model_parallel_layout": "layout",
    "megatron.account_for_*_in_pipeline_split": "layout",
    "megatron.microbatch_group_size_per_vp_stage": "order of the pipeline's passes",
    "megatron.pipeline_model_parallel_comm_backend": "communication",
    "megatron.cp_comm_type": "communication",
    "megatron.batch_p2p_sync": "communication",
    "megatron.overlap_p2p_comm_warmup_flush": "communication",
    "megatron.*_fusion": "the same function by other kernels",
    "megatron.persist_layer_norm": "the same function by other kernels",
    "megatron.memory_efficient_layer_norm": "memory",
    "megatron.deterministic_mode": "the same function by other kernels",
    "optimizer.overlap_*": "communication",
    "ddp.overlap_*": "communication",
    "ddp.bucket_size": "communication",
    "ddp.pad_buckets_for_high_nccl_busbw": "communication",
    "ddp.nccl_ub": "communication",
    "ddp.disable_symmetric_registration": "communication",
    "ddp.check_for_*": "what ends a run",
    "*.timers": "measurement",
    "*.barrier_with_L1_time": "measurement",
    "*.config_logger_dir": "logging",
    "optimizer.log_num_zeros_in_grad": "logging",
}
# What a run did that began before a setting was there, where that is not the setting's default.
BEFORE = {"distill": {"clip_mode": "entry"}}
# Besides tokenizer and configuration of the model, what prompts and the ends of responses are made of.
_OTHER_FILES = ("merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "generation_config.json")


def check_resumable(folder: Path, config: TrainConfig, inputs: TrainingInputs) -> None:
    """Raise CheckpointError when the checkpoint `folder` is no run's, or of a run with other settings, problems, or another model.

    Reads no weights, but the base's under adapters, for their checksums, where nothing tells these. Collective.
    """
    plain = read_plain_values(folder)
    saved, adapters = plain.get("run"), record_of(plain)
    if saved is None:
        raise CheckpointError(f"{folder}: holds weights but no training state; give it as model.path to start a new run from it")
    check_unchanged(saved["config"], asdict(config))
    if adapters is not None:
        check_base(adapters.base, base_model(inputs.model.folder), folder)
    ProblemSampler(inputs.problems, config.data.batch, config.run.seed).check(saved["sampler"])
    if saved["probe"] != fingerprint(inputs.probe_problems):
        raise CheckpointError(f"data.probe holds other problems than the run that {folder} continues: give the same file")
    check_same_model(folder / "hf", inputs.model)
    check_same_evaluations(Path(config.run.dir), saved["update"], config, inputs.evaluation_files)


def as_begun(folder: Path, config: TrainConfig) -> TrainConfig:
    """The configuration with what the beginning of the run has decided for good: whether its adapters were new (lora.start)."""
    began = read_plain_values(folder)["run"]["config"].get("lora", {})
    return replace(config, lora=replace(config.lora, start=began.get("start", "")))


def check_unchanged(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise CheckpointError, naming each, for settings that are neither what they were nor FREE; old, new: whole configurations as asdict.

    A setting that one of them lacks has its default there, or what BEFORE says. run.updates and eval.every are free while nothing
    depends on them.
    """
    changes = [f"{name} is {_shown(now)}, but the run began with {_shown(was)}{why}" for name, was, now, why in guarded_changes(old, new)]
    if changes:
        raise CheckpointError(f"{'; '.join(changes)}: set {'it' if len(changes) == 1 else 'them'} back, or choose another run.dir")


def guarded_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any, str]]:
    """Name of each changed setting, its old and new value, and why it is guarded where that is not plain."""
    for section, known in default_settings().items():
        was, now = (
            {**known, **first, **_as_computed(section, config.get(section, {}))}
            for first, config in ((BEFORE.get(section, {}), old), ({}, new))
        )
        for key in sorted({*was, *now}):
            name, why = f"{section}.{key}", ""
            if was.get(key) == now.get(key) or is_free(name) or name in RENAMED:
                continue
            if name == "run.updates" and not (why := depends_on_updates(new)):
                continue
            if name == "eval.every" and not (why := depends_on_evaluations(new)):
                continue
            yield name, was.get(key), now.get(key), why


def is_free(name: str) -> bool:
    """Whether a setting `section.key` may change."""
    return any(fnmatchcase(name, pattern) for pattern in FREE)


def depends_on_updates(config: Mapping[str, Any]) -> str:
    """What follows the length of the training, '' when nothing does."""
    decay, exposure = config["schedule"]["decay"], config["exposure"]
    mode = exposure["mode"]
    equal_stages = mode == "step" and not exposure["step_at"]
    if decay != "constant":
        return f", and schedule.decay {decay} depends on it"
    if exposure["bins"] > 1 and exposure["difficulty"] != "field":
        return ", and exposure.bins depends on it: the start model measured the problems of so many updates"
    # Of learned the progress that the policy sees, and its entropy target; of posterior what knowing an exposure is still worth.
    if mode in ("linear", "cosine", "learned", "posterior") or equal_stages:
        return f", and exposure.mode {mode} depends on it"
    return ""


def depends_on_evaluations(config: Mapping[str, Any]) -> str:
    """What follows how often the run is evaluated, '' when nothing does."""
    return ", and eval.select best chooses among the evaluations" if config["eval"]["select"] == "best" else ""


def default_settings() -> dict[str, dict[str, Any]]:
    """Every setting by section and key, megatron.core's too, with its default."""
    passed_through = {
        "megatron": {**_field_defaults(TransformerConfig), **MEGATRON_DEFAULTS},
        "optimizer": {**_field_defaults(OptimizerConfig), **OPTIMIZER_DEFAULTS},
        "ddp": {**_field_defaults(DistributedDataParallelConfig), **DDP_DEFAULTS},
    }
    return asdict(TrainConfig()) | passed_through


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else spell(value)


def _field_defaults(cls: Any) -> dict[str, Any]:
    return {field.name: getattr(cls, field.name, None) for field in fields(cls)}


def _as_computed(section: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with precisions that are computed alike spelled alike."""
    return {key: value if section != "precision" or fp8_recipe(value) else None for key, value in settings.items()}


def check_same_model(saved: Path, model: ModelInputs) -> None:
    """Raise CheckpointError when the model's files, weights aside, differ from those that a checkpoint keeps in the folder `saved`."""
    here = model.hf_folder
    differing = ["config.json"] if read_architecture(saved) != model.architecture else []
    differing += [name for name in (*TOKENIZER_FILES, *_OTHER_FILES) if _content(saved / name) != _content(here / name)]
    if differing:
        raise CheckpointError(
            f"model.path is {model.folder}, but {', '.join(differing)} there is not what the run began with ({saved}): give that model, "
            "or choose another run.dir"
        )


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
