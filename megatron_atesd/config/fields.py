"""The names, types and descriptions of all settings, read off the dataclasses of config.py."""

import difflib
import types
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser

from megatron_atesd.config.schema import PathText, PathTexts, TrainConfig

# Settings that had another name before; the old one is still read.
RENAMED = {"rollout.batch": "engine.batch", "engine.gap_alarm": "health.logprob_gap"}


@dataclass(frozen=True)
class Setting:
    """One setting: its dotted name, type, default and docstring line. A pass-through section is one setting of type dict."""

    name: str
    hint: Any
    default: Any
    help: str
    is_path: bool = False


@cache
def section_types() -> Mapping[str, Any]:
    """Section name → its dataclass, or dict for the sections passed through to megatron.core."""
    return types.MappingProxyType(get_type_hints(TrainConfig))


def section_title(section: str) -> str:
    """First docstring line of a section."""
    return docstring_parser.parse(section_types()[section].__doc__ or "").short_description or section


@cache
def section_settings(section: str) -> tuple[Setting, ...]:
    """The settings of one section in their order of definition."""
    cls = section_types()[section]
    if not is_dataclass(cls):
        return (Setting(section, cls, {}, _argument_help(TrainConfig)[section]),)
    lines, hints, annotated = _argument_help(cls), get_type_hints(cls), get_type_hints(cls, include_extras=True)
    return tuple(
        Setting(f"{section}.{f.name}", hints[f.name], _default(f), lines.get(f.name, ""), annotated[f.name] in (PathText, PathTexts))
        for f in fields(cls)
    )


def _default(field: Any) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


@cache
def all_settings() -> Mapping[str, Setting]:
    """Dotted name → setting, over all sections."""
    return types.MappingProxyType({setting.name: setting for section in section_types() for setting in section_settings(section)})


def _argument_help(cls: Any) -> dict[str, str]:
    return {p.arg_name: " ".join((p.description or "").split()) for p in docstring_parser.parse(cls.__doc__ or "").params}


def did_you_mean(name: str, known: Collection[str]) -> str:
    """`; did you mean a or b?` with the settings of the same last part, or else the most similar name; empty if there is none."""
    same_key = [candidate for candidate in known if candidate.rpartition(".")[2] == name.rpartition(".")[2]]
    matches = same_key or difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""


_LEFT_OUT = "left out"
_SPELLED = (bool, str, list, dict, types.NoneType)


def accepts(hint: Any, value: Any) -> bool:
    """Whether a value fits a type. One that YAML can spell fits none of the types that it cannot (callables, tensor types, …)."""
    origin = get_origin(hint)
    if hint is Any or origin is Literal:
        return hint is Any or any(value == option and type(value) is type(option) for option in get_args(hint))
    if origin in (Union, types.UnionType):
        return any(accepts(option, value) for option in get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    plain = types.NoneType if hint is None else origin or hint
    if plain in (tuple, set):
        return isinstance(value, list)
    return isinstance(value, plain) if plain in _SPELLED else not isinstance(value, (int, float, *_SPELLED))


def describe(hint: Any) -> str:
    """A type in words, for messages."""
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "a mapping"}
    words |= dict.fromkeys((list, tuple, set), "a list")
    origin = get_origin(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(option) for option in get_args(hint))
    if origin in (Union, types.UnionType):
        options = list(dict.fromkeys(map(describe, get_args(hint))))
        return " or ".join(option for option in options if option != _LEFT_OUT)
    if hint in (None, types.NoneType):
        return "null"
    return words.get(origin or hint, _LEFT_OUT)


def spell(value: Any) -> str:
    """A value as it would stand in YAML, for messages."""
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else repr(value)
