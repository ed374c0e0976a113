"""From the YAML file of a study to a Study; whatever is wrong is refused with file, line, name and rule."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from megatron_atesd.config import layered_config, refuse
from megatron_atesd.config.fields import accepts, describe, did_you_mean, spell
from megatron_atesd.config.yaml import Document, Entry, yaml_document
from megatron_atesd.errors import ConfigError
from megatron_atesd.paths import user_path
from megatron_atesd.study.design import Arm, Bases, EvaluationPlan, SignalsPlan, Study, Task
from megatron_atesd.study.rules import NAME, NAME_RULE, study_problems

Section = TypeVar("Section")
Layers = list[Mapping[str, Mapping[str, Any]]]
TOP: dict[str, Any] = {
    "out": str, "bases": dict, "tasks": dict, "settings": dict, "arms": dict, "seeds": list[int], "evaluation": dict,
    "fixed": list[str], "references": list[str], "unit": get_type_hints(Study)["unit"], "processes": int, "signals": dict,
}  # fmt: skip
_NEEDED = ("out", "bases", "tasks", "arms", "seeds", "evaluation")
# What the study decides for each run, by the entry that does.
_DECIDED = {"run.seed": "seeds", "run.dir": "out", "model.path": "bases.model", "data.train": "tasks", "data.probe": "tasks"}


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
    refuse([f"{path}: {problem}" for problem in study_problems(study)])
    return study


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
    layers: Layers = []
    for file in files:
        with yaml_document(user_path(file), f"{entry.where}: {entry.name}.config ") as below:
            layers.append(below.settings(below.entries()))
    own = document.settings(list(found.values()))
    for name, by in _DECIDED.items():
        section, key = name.split(".")
        if key in own.get(section, {}):
            raise ConfigError(f"{found[section].where}: {entry.name}.{name} would have no effect, because {by} decides it; remove it")
    return [*layers, own]


def _names(document: Document, entry: Entry) -> list[Entry]:
    """The entries of a mapping of names; at least one."""
    entries = document.entries(entry)
    if not entries:
        raise ConfigError(f"{entry.where}: {entry.name} is empty; name at least one")
    for each in entries:
        if not NAME.fullmatch(each.key):
            raise ConfigError(f"{each.where}: {each.name}: the name {each.key!r} {NAME_RULE}")
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
    """The value of an entry. A single one stands for a list of one, and in a list of texts a number for how it is written."""
    value = document.value(entry)
    if get_origin(hint) is list:
        (part,) = get_args(hint)
        nodes = entry.node.value if isinstance(entry.node, yaml.SequenceNode) else [entry.node]
        parts = value if isinstance(value, list) else [value]
        found = [_text(each, node) for each, node in zip(parts, nodes, strict=True)] if part is str else parts
        if not all(accepts(part, each) for each in found):
            raise ConfigError(f"{entry.where}: {entry.name} is {spell(value)}, must be a list of {describe(part)}")
    elif not accepts(hint, value):
        raise ConfigError(f"{entry.where}: {entry.name} is {spell(value)}, must be {describe(hint)}")
    else:
        found = value
    texts = [each for each in (found if isinstance(found, list) else [found]) if isinstance(each, str)]
    if any("\0" in text for text in texts):
        raise ConfigError(f"{entry.where}: {entry.name} has a NUL character; remove it")
    if "" in texts and hint is str:
        raise ConfigError(f"{entry.where}: {entry.name} is empty; give a text")
    return found


def _text(value: Any, node: yaml.Node) -> Any:
    return node.value if isinstance(value, int | float) and not isinstance(value, bool) else value
