"""From the YAML file of a study to a Study; whatever is wrong is refused with file, line, name and rule."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from megatron_atesd.config import (
    TrainConfig,
    layered_config,
    method_problems,
    parallel_problems,
    refuse,
    rollout_problems,
    section_problems,
)
from megatron_atesd.config.bounds import SEED
from megatron_atesd.config.exposures import exposures_problem
from megatron_atesd.config.fields import accepts, describe, did_you_mean, section_types, spell
from megatron_atesd.config.yaml import Document, Entry, read_settings, yaml_document
from megatron_atesd.errors import ConfigError
from megatron_atesd.paths import user_path
from megatron_atesd.study.design import Arm, Bases, EvaluationPlan, SignalsPlan, Study, Task

Section = TypeVar("Section")
Layers = list[Mapping[str, Mapping[str, Any]]]
TOP: dict[str, Any] = {
    "out": str, "bases": dict, "tasks": dict, "settings": dict, "arms": dict, "seeds": list[int], "evaluation": dict,
    "fixed": list[str], "references": list[str], "unit": get_type_hints(Study)["unit"], "processes": int, "signals": dict,
}  # fmt: skip
_NEEDED = ("out", "bases", "tasks", "arms", "seeds", "evaluation")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_PLACE = re.compile(r"\{(\w*)\}")
# An arm with other values would see other numbers of rollout tokens.
_BUDGET = ("run.updates", "data.batch", "rollout")


def read_study(path: Path) -> Study:
    """The study that `path` describes. Raises ConfigError for a file that cannot be read or describes none."""
    with yaml_document(path) as document:
        top = _known(document.entries(), TOP, _NEEDED, str(path))
        values = {name: _plain(document, entry, TOP[name]) for name, entry in top.items() if TOP[name] is not dict}
        tasks = {e.key: _section(document, e, Task) for e in _names(document, top["tasks"])}
        settings = [*_layers(document, top["settings"], ())] if "settings" in top else []
        arms = {e.key: _arm(document, e, settings, list(tasks)) for e in _names(document, top["arms"])}
        study = Study(
            file=path,
            bases=_section(document, top["bases"], Bases),
            tasks=tasks,
            before=layered_config(settings),
            arms=arms,
            evaluation=_section(document, top["evaluation"], EvaluationPlan),
            signals=_section(document, top["signals"], SignalsPlan) if "signals" in top else None,
            **{"fixed": [], "references": [], **values, "out": user_path(values["out"])},
        )
    refuse([f"{path}: {problem}" for problem in _problems(study)])
    return study


def _problems(study: Study) -> Iterator[str]:
    rule, is_seed = SEED
    for name, values in (("bases.names", study.bases.names), ("seeds", study.seeds)):
        if not values or len(set(values)) < len(values):
            yield f"{name} is {values}, must be a list of different ones, at least one"
    yield from (f"seeds has {seed}, must be {rule}" for seed in study.seeds if not is_seed(seed))
    yield from (f"bases.names has {name!r}, {_NAME_RULE}" for name in study.bases.names if not _NAME.fullmatch(name))
    if study.processes < 1:
        yield f"processes is {study.processes}, must be 1 or more"
    yield from _place_problems(study)
    yield from _comparison_problems(study)
    yield from _evaluation_problems(study.evaluation)
    yield from _signal_problems(study.signals, study.before.run.updates) if study.signals else ()
    for arm in study.arms.values() if study.processes > 0 else ():
        yield from (f"arms.{arm.name}: {problem}" for problem in _arm_problems(arm, study))


_NAME_RULE = "must be letters, digits and any of _ . + - (it names a folder)"


def _place_problems(study: Study) -> Iterator[str]:
    texts = {"bases.make": study.bases.make, "bases.model": [study.bases.model]}
    for name, task in study.tasks.items():
        texts |= {f"tasks.{name}.make": task.make} | {f"tasks.{name}.{file}": [getattr(task, file)] for file in ("train", "probe", "test")}
    for name, lines in texts.items():
        known = ("folder", "base", "python") if name.endswith(".make") else ("folder", "base")
        for place in (place for line in lines for place in _PLACE.findall(line) if place not in known):
            yield f"{name} has {{{place}}}, must be of {', '.join(f'{{{each}}}' for each in known)}"
    makers = {"bases": (study.bases.make, study.bases.model)} | {f"tasks.{n}": (t.make, t.train) for n, t in study.tasks.items()}
    for name, (make, place) in makers.items():
        if "{folder}" in place and not make:
            yield f"{name}.make is missing, though {name} points into {{folder}}, which these commands would fill"


def _comparison_problems(study: Study) -> Iterator[str]:
    for key, names in (("fixed", study.fixed), ("references", study.references)):
        for name in names:
            if name not in study.arms:
                yield f"{key} has {name}, which is no arm{did_you_mean(name, study.arms)}"
            elif key == "fixed" and (mode := study.arms[name].config.exposure.mode) != "fixed":
                yield f"fixed has {name}, whose exposure.mode is {mode}, must be fixed"


def _evaluation_problems(plan: EvaluationPlan) -> Iterator[str]:
    for name, low in (("update", 1), ("samples", 1), ("max_new_tokens", 1), ("top_k", 0), ("temperature", 0), ("top_p", 0), ("min_p", 0)):
        if getattr(plan, name) < low:
            yield f"evaluation.{name} is {getattr(plan, name)}, must be {low} or more"


def _signal_problems(plan: SignalsPlan, updates: int) -> Iterator[str]:
    if problem := exposures_problem(plan.alphas):
        yield f"signals.alphas is {plan.alphas}, {problem}"
    if not 0 <= plan.lead_alpha <= 1:
        yield f"signals.lead_alpha is {plan.lead_alpha}, must be from 0 to 1"
    if plan.updates < 1:
        yield f"signals.updates is {plan.updates}, must be 1 or more"
    if not plan.leads or min(plan.leads) < 0 or len(set(plan.leads)) < len(plan.leads):
        yield f"signals.leads is {plan.leads}, must be different numbers of updates, 0 or more, at least one"
    elif max(plan.leads) + plan.updates > updates:
        yield f"signals.leads has {max(plan.leads)}, and with signals.updates {plan.updates} more than run.updates {updates}; lower one"


def _arm_problems(arm: Arm, study: Study) -> Iterator[str]:
    config, update = arm.config, study.evaluation.update
    broken = section_problems(config, list(section_types()))
    yield from broken or [*parallel_problems(config, study.processes), *rollout_problems(config.rollout), *method_problems(config)]
    for name in _BUDGET:
        ours, common = (_value(c, name) for c in (config, study.before))
        if ours != common:
            yield f"{name} differs from that of settings, which would give the arm other rollout tokens than the others; set it in settings"
    if not arm.tasks:
        yield "tasks is empty; name one, or leave it out for all"
    yield from (f"tasks has {name}, which is no task{did_you_mean(name, study.tasks)}" for name in arm.tasks if name not in study.tasks)
    updates, every = config.run.updates, config.checkpoint.every
    if update > updates:
        yield f"run.updates is {updates}, but evaluation.update is {update}, which is never reached; raise the one or lower the other"
    elif update < updates and (every == 0 or update % every):
        yield f"checkpoint.every is {every}, which saves nothing after evaluation.update {update}; give a divisor of it"
    if config.checkpoint.resume != "auto":
        yield f"checkpoint.resume is {config.checkpoint.resume}, must be auto: a run that was killed goes on"


def _value(config: TrainConfig, name: str) -> Any:
    section, _, key = name.partition(".")
    return getattr(getattr(config, section), key) if key else getattr(config, section)


def _arm(document: Document, entry: Entry, common: Layers, tasks: Sequence[str]) -> Arm:
    """An arm: sections of settings, and beside them `config` (more files) and `tasks`."""
    own = {e.key: e for e in document.entries(entry)}
    chosen = _plain(document, own["tasks"], list[str]) if "tasks" in own else list(tasks)
    config = layered_config([*common, *_layers(document, entry, ("tasks",))])
    return Arm(entry.key, config, chosen)


def _layers(document: Document, entry: Entry, besides: Sequence[str]) -> Layers:
    """The files of `config`, then the sections beside it, but for the keys `besides`."""
    found = {e.key: e for e in document.entries(entry) if e.key not in besides}
    files = _plain(document, found.pop("config"), list[str]) if "config" in found else []
    return [*(read_settings(user_path(file)) for file in files), document.settings(list(found.values()))]


def _names(document: Document, entry: Entry) -> list[Entry]:
    """The entries of a mapping of names; at least one."""
    entries = document.entries(entry)
    if not entries:
        raise ConfigError(f"{entry.where}: {entry.name} is empty; name at least one")
    for each in entries:
        if not _NAME.fullmatch(each.key):
            raise ConfigError(f"{each.where}: {each.name}: the name {each.key!r} {_NAME_RULE}")
    return entries


def _section(document: Document, entry: Entry, cls: type[Section]) -> Section:
    """A dataclass from a mapping, names and types checked."""
    hints: dict[str, Any] = get_type_hints(cls)
    needed = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]  # pyright: ignore[reportArgumentType]
    known = _known(document.entries(entry), hints, needed, f"{entry.where}: {entry.name}")
    return cls(**{name: _plain(document, e, hints[name]) for name, e in known.items()})


def _known(entries: Sequence[Entry], hints: Mapping[str, Any], needed: Sequence[str], place: str) -> dict[str, Entry]:
    for entry in entries:
        if entry.key not in hints:
            raise ConfigError(f"{entry.where}: unknown name {entry.name}{did_you_mean(entry.key, hints)}")
    found = {entry.key: entry for entry in entries}
    if missing := [name for name in needed if name not in found]:
        raise ConfigError(f"{place}: lacks {', '.join(missing)}")
    return found


def _plain(document: Document, entry: Entry, hint: Any) -> Any:
    """The value of an entry. A single one stands for a list of one, and a number for its text."""
    value = document.value(entry)
    if hint in (list[str], list[int]):
        part = str if hint == list[str] else int
        value = [_text(each) if part is str else each for each in (value if isinstance(value, list) else [value])]
        if not all(accepts(part, each) for each in value):
            raise ConfigError(f"{entry.where}: {entry.name} is {spell(document.value(entry))}, must be a list of {describe(part)}")
        return value
    if not accepts(hint, value):
        raise ConfigError(f"{entry.where}: {entry.name} is {spell(value)}, must be {describe(hint)}")
    return value


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
