"""The rules that section eval breaks, by itself and against section engine."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_atesd.config.schema import TrainConfig


def eval_names(files: Sequence[str]) -> list[str]:
    """The name of each of eval.files: what metrics and eval.select_on call it."""
    return [Path(file).stem for file in files]


def eval_problems(config: TrainConfig) -> Iterator[str]:
    """The broken rules, as sentences."""
    settings = config.eval
    names = eval_names(settings.files)
    for file in settings.files:
        if not Path(file).is_file():
            yield f"eval.files has {file!r}, which is no file; give problem files (JSONL with problem and solution)"
    if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
        same = " and ".join(file for file, name in zip(settings.files, names, strict=True) if name == twice)
        yield f"eval.files has {same}, which metrics would both call {twice!r}; rename one, or leave one out"
    if settings.temperature == 0 and settings.samples > 1:
        yield f"eval.temperature is 0 with eval.samples {settings.samples}: all samples would be alike; set eval.samples to 1"
    if settings.engine == "vllm" and config.engine.name != "vllm":
        yield (
            f"eval.engine is vllm with engine.name {config.engine.name}: a vLLM beside would hold a second copy of the weights all the "
            "time; set engine.name to vllm too, or eval.engine to null"
        )
    yield from _select_problems(config, names)


def _select_problems(config: TrainConfig, names: Sequence[str]) -> Iterator[str]:
    select, on = config.eval.select, config.eval.select_on
    if select == "last" and on:
        yield f"eval.select_on is {on}, which has no effect with eval.select last; leave it out, or set eval.select to best"
    if select == "best" and on not in names:
        known = ", ".join(names) or "none"
        yield f"eval.select is best, but eval.select_on {on!r} names none of eval.files; give one of their names ({known})"
