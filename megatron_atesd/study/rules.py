"""The rules that a study must keep, beyond the types of its entries."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from math import inf
from typing import Any

from megatron_atesd.config import TrainConfig, method_problems, parallel_problems, rollout_problems, section_problems
from megatron_atesd.config.bounds import BOUNDS, ONE_OR_MORE, SEED
from megatron_atesd.config.exposures import exposures_problem
from megatron_atesd.config.fields import did_you_mean, section_types
from megatron_atesd.study.design import Arm, EvaluationPlan, SignalsPlan, Study

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(?<!\.log)(?<!\.partial)")  # what is made for a name lies beside its folder under these
NAME_RULE = "must be letters, digits and any of _ . + - (it names a folder), and not end in .log or .partial"
_PLACE = re.compile(r"\{(\w*)\}")
# An arm with other values would see other numbers of rollout tokens.
_BUDGET = ("run.updates", "data.batch", "rollout")


def study_problems(study: Study) -> Iterator[str]:
    """A sentence for each rule that is broken."""
    rule, is_seed = SEED
    for name, values in (("bases.names", study.bases.names), ("seeds", study.seeds)):
        if not values or len(set(values)) < len(values):
            yield f"{name} is {values}, must be a list of different ones, at least one"
    yield from (f"seeds has {seed}, must be {rule}" for seed in study.seeds if not is_seed(seed))
    yield from (f"bases.names has {name!r}, {NAME_RULE}" for name in study.bases.names if not NAME.fullmatch(name))
    if study.processes < 1:
        yield f"processes is {study.processes}, must be 1 or more"
    yield from _place_problems(study)
    yield from _comparison_problems(study)
    yield from _evaluation_problems(study.evaluation)
    yield from _signal_problems(study.signals, study.before.run.updates) if study.signals else ()
    of_arms = (
        [f"arms.{a.name}: {problem}" for a in study.arms.values() for problem in _arm_problems(a, study)] if study.processes > 0 else []
    )
    yield from of_arms
    if study.signals and study.processes > 0 and not of_arms:  # else it is said already
        checked = replace(study.before, exposure=replace(study.before.exposure, bias_check=1))
        yield from (f"settings, with which signals are checked: {problem}" for problem in _config_problems(checked, study.processes))


def _place_problems(study: Study) -> Iterator[str]:
    texts = {"bases.make": study.bases.make, "bases.model": [study.bases.model]}
    for name, task in study.tasks.items():
        texts |= {f"tasks.{name}.make": task.make} | {f"tasks.{name}.{file}": [getattr(task, file)] for file in ("train", "probe", "test")}
    for name, lines in texts.items():
        known = ("folder", "base", "python") if name.endswith(".make") else ("folder", "base")
        for place in (place for line in lines for place in _PLACE.findall(line) if place not in known):
            yield f"{name} has {{{place}}}, must be of {', '.join(f'{{{each}}}' for each in known)}"
    for name in (name for name in texts if name.endswith(".make")):
        yield from (f"{name} has {line!r}, {problem}" for line in texts[name] if (problem := _command_problem(line)))
    makers = {"bases": (study.bases.make, study.bases.model)} | {f"tasks.{n}": (t.make, t.train) for n, t in study.tasks.items()}
    for name, (make, place) in makers.items():
        if "{folder}" in place and not make:
            yield f"{name}.make is missing, though {name} points into {{folder}}, which these commands would fill"
    yield from _sharing_problems(study)


def _command_problem(line: str) -> str | None:
    """Why a line is no command."""
    try:
        return None if shlex.split(line) else "must be a command"
    except ValueError as error:
        return f"which cannot be split into words ({error}); correct its quotes"


def _sharing_problems(study: Study) -> Iterator[str]:
    """Bases that are one model, and problems that are no held-out ones."""
    if len(study.bases.names) > 1 and not re.search(r"\{(base|folder)\}", study.bases.model):
        yield (
            f"bases.model is {study.bases.model} for all of {', '.join(study.bases.names)}, whose runs would pass for observations of "
            "their own; give each its model, by {base} or {folder} in the path, or keep one name"
        )
    for name, task in study.tasks.items():
        yield from (
            f"tasks.{name}.test is also its {other}, must be held out" for other in ("train", "probe") if getattr(task, other) == task.test
        )


def _comparison_problems(study: Study) -> Iterator[str]:
    for key, names in (("fixed", study.fixed), ("references", study.references)):
        for name in names:
            if name not in study.arms:
                yield f"{key} has {name}, which is no arm{did_you_mean(name, study.arms)}"
            elif key == "fixed" and (mode := study.arms[name].config.exposure.mode) != "fixed":
                yield f"fixed has {name}, whose exposure.mode is {mode}, must be fixed"
            elif key == "fixed" and (bins := study.arms[name].config.exposure.bins) > 1:
                yield f"fixed has {name}, whose exposure.bins is {bins}: it has no one α to be drawn at; remove it from the list"
    points: dict[float, str] = {}
    for name in (name for name in study.fixed if name in study.arms and study.arms[name].config.exposure.mode == "fixed"):
        alpha = study.arms[name].config.exposure.fixed
        if alpha in points:
            yield f"fixed has {points[alpha]} and {name} at the same α {alpha}, must be one arm an α, each once"
        points[alpha] = name


def _evaluation_problems(plan: EvaluationPlan) -> Iterator[str]:
    sampling = {name: BOUNDS[f"rollout.{name}"] for name in ("temperature", "top_p", "top_k", "min_p", "max_new_tokens")}
    for name, (rule, holds) in {"update": ONE_OR_MORE, "samples": ONE_OR_MORE, **sampling}.items():
        value = getattr(plan, name)
        if not (abs(value) < inf and holds(value)):
            yield f"evaluation.{name} is {value}, must be {rule}"


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


def _config_problems(config: TrainConfig, processes: int) -> list[str]:
    broken = section_problems(config, list(section_types()))
    return broken or [*parallel_problems(config, processes), *rollout_problems(config.rollout), *method_problems(config)]


def _arm_problems(arm: Arm, study: Study) -> Iterator[str]:
    config, update = arm.config, study.evaluation.update
    yield from _config_problems(config, study.processes)
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
