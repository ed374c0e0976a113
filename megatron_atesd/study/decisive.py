"""What decides the result of a run, of a check, of the evaluation of a base, written down beside it.

So results of other settings are never taken for its own.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

from megatron_atesd.checkpoint.fingerprint import fingerprint
from megatron_atesd.config.fields import spell
from megatron_atesd.errors import ConfigError
from megatron_atesd.evaluate.responses import write_whole
from megatron_atesd.study.design import Before, Check, Run, Study

RECIPE, DECISIVE = "recipe.json", "decisive.json"
Decisive = dict[str, Any]
Part = Before | Run | Check
_OF_EVALUATION = ("model", "prompt", "precision", "megatron")  # sections that decide what a base answers


def decisive_of(study: Study, part: Part) -> Decisive:
    """All of it, JSON-ready. Model and problem files count by their contents; they must be there."""
    files = study.problems(part.task, part.base)
    names = ("test",) if isinstance(part, Before) else tuple(files)
    problems = {f"the {name} problems": _sha256(files[name]) for name in names}
    return _chosen(study, part) | {"inputs": {"the model": fingerprint(study.model(part.base)), **problems}}


def folder_of(study: Study, part: Part) -> Path:
    """Where a part leaves everything."""
    if isinstance(part, Before):
        return study.before_folder(part.task, part.base)
    return study.run_folder(part) if isinstance(part, Run) else study.check_folder(part)


def checksum(decisive: Decisive) -> str:
    """16 hexadecimal digits that change when anything of it does."""
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def write_json(path: Path, value: Any) -> None:
    """The file has its name only when it is complete."""
    write_whole(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def check_begun(study: Study, parts: Sequence[Part], inputs: bool) -> None:
    """Raise ConfigError that names what differs where a part was begun with other settings than the study has now.

    inputs: whether models and problem files are there, and are to be compared too.
    """
    changed: list[tuple[Part, list[str]]] = []
    for part in parts:
        if (there := _read(folder_of(study, part) / DECISIVE)) is not None:
            now = decisive_of(study, part) if inputs else _chosen(study, part) | {"inputs": there["inputs"]}
            if different := list(_differences(there, now)):
                changed.append((part, different))
    if changed:
        part, different = changed[0]
        article, kind = {Before: ("an", "evaluation"), Run: ("a", "run"), Check: ("a", "check")}[type(part)]
        name = "give the arm another name, " if kind == "run" else ""
        more = sum(type(other) is type(part) for other, _ in changed[1:])
        raise ConfigError(
            f"{folder_of(study, part)}{f' (and {more} more {kind}s)' if more else ''} has {article} {kind} with other settings: "
            f"{'; '.join(different[:3])}{' …' if len(different) > 3 else ''}; set it back, {name}or remove the folder to do the {kind} anew"
        )


def check_recipe(folder: Path, name: str, make: list[str]) -> None:
    """Raise ConfigError where `folder` was made by other commands than the study has now under `name`."""
    if folder.is_dir() and (there := _read(folder / RECIPE)) != make:
        old, new = next(pair for pair in zip_longest(there or [], make) if pair[0] != pair[1])
        raise ConfigError(f"{folder} was made by {old!r}, but {name} has {new!r}; set it back, or remove the folder to make it anew")


def _chosen(study: Study, part: Part) -> Decisive:
    if isinstance(part, Before):
        evaluation = {name: value for name, value in asdict(study.evaluation).items() if name != "update"}
        return {"settings": {name: asdict(study.before)[name] for name in _OF_EVALUATION}, "evaluation": evaluation}
    settings = asdict(study.config(part) if isinstance(part, Run) else study.check_config(part))
    for section, key in (("run", "dir"), ("model", "path"), ("data", "train"), ("data", "probe")):
        del settings[section][key]
    if isinstance(part, Run):
        return {"settings": settings, "evaluation": asdict(study.evaluation)}
    plan = asdict(study.signals) if study.signals else {}
    plan.pop("leads", None)  # others may come
    return {"settings": settings, "signals": plan}


def _differences(there: Decisive, now: Decisive) -> Iterator[str]:
    if there["settings"] != now["settings"]:
        from megatron_atesd.train.resume import guarded_changes  # megatron.core is slow to import

        for name, was, new, _ in guarded_changes(there["settings"], now["settings"]):
            yield f"{name} is {spell(new)}, there {spell(was)}"
    section = "evaluation" if "evaluation" in now else "signals"
    for name in now[section]:
        if (was := there[section].get(name)) != now[section][name]:
            yield f"{section}.{name} is {spell(now[section][name])}, there {spell(was)}"
    yield from (f"{name} {_verb(name)} changed" for name, value in now["inputs"].items() if there["inputs"].get(name) != value)


def _verb(name: str) -> str:
    return "has" if name == "the model" else "have"


def _read(path: Path) -> Any:
    """None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); remove its folder to do that part anew") from None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
