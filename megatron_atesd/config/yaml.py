"""Settings in YAML: safe loading with file and line in every refusal, and writing that loads back to the same values."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from megatron_atesd.config.fields import RENAMED, accepts, all_settings, describe, did_you_mean, section_types, spell
from megatron_atesd.errors import ConfigError

IGNORED_SECTIONS = frozenset({"versions"})  # what save_config adds for the reader


class SettingsLoader(yaml.SafeLoader):
    """Safe loader that reads 1e-5 as a number, as YAML 1.2 does (YAML 1.1 wants 1.0e-5).

    It knows no aliases: settings have no use for them, and a few lines of nested ones stand for gigabytes.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            alias = self.get_event()
            raise yaml.MarkedYAMLError(
                problem=f"alias *{alias.anchor} is not supported: write the value out", problem_mark=alias.start_mark
            )
        return super().compose_node(parent, index)


class SettingsDumper(yaml.SafeDumper):
    """Its counterpart: quotes a text that the loader would read as a number, and writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_EXPONENT = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
SettingsLoader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))
SettingsDumper.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


@dataclass(frozen=True)
class Entry:
    """One key of a YAML mapping: its dotted name, the key itself, the node of its value, and `file:line`."""

    name: str
    key: str
    node: yaml.Node
    where: str


def read_settings(path: Path) -> dict[str, dict[str, Any]]:
    """Section → settings of a YAML file, names and types checked.

    Raises ConfigError with file and line for a missing file, bad YAML, an unknown or repeated name, or a value of the wrong type.
    """
    with yaml_document(path, "--config ") as document:
        return document.settings(document.entries())


@dataclass(frozen=True)
class Document:
    """A YAML file whose values are looked at one by one, so that a refusal can name file and line."""

    path: Path
    loader: SettingsLoader
    root: yaml.Node | None

    def entries(self, of: Entry | None = None) -> list[Entry]:
        """The entries of the whole file, or of the mapping that is the value of `of`. Raises ConfigError when it is none."""
        if of is not None:
            return _entries(self.path, of.node, f"{of.name}.")
        return _entries(self.path, self.root, "") if self.root is not None else []

    def value(self, entry: Entry) -> Any:
        """What an entry says, as plain Python."""
        return self.loader.construct_object(entry.node, deep=True)

    def settings(self, sections: Sequence[Entry]) -> dict[str, dict[str, Any]]:
        """Section → settings of a training run, names and types checked."""
        found = {e.key: _section(self.path, self.loader, replace(e, name=e.key)) for e in sections if e.key not in IGNORED_SECTIONS}
        return _under_new_names(found)


@contextmanager
def yaml_document(path: Path, option: str = "") -> Iterator[Document]:
    """The YAML file `path`; whatever is wrong with it, noticed inside, becomes a ConfigError. option: what the path was given by."""
    try:
        loader = SettingsLoader(_read_text(path, option))
        yield Document(path, loader, loader.get_single_node())
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except (RecursionError, ValueError) as error:  # nested too deeply; a date or number that cannot be
        raise ConfigError(f"{path}: a value cannot be read ({error}); correct it") from None


def _read_text(path: Path, option: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{option}{path}: cannot be read ({error.strerror}); give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{option}{path}: is not UTF-8 text; give the path of a YAML file") from None


def _entries(path: Path, node: yaml.Node, prefix: str) -> list[Entry]:
    """The entries of a mapping node; an empty value (all lines commented out) counts as an empty mapping."""
    if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
        return []
    if not isinstance(node, yaml.MappingNode):
        what = f"section {prefix.rstrip('.')}" if prefix else "the file"
        raise ConfigError(f"{path}:{node.start_mark.line + 1}: {what} must be a mapping of names to values")
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{path}:{key.start_mark.line + 1}: a name must be plain text, not a list or mapping")
    found = [Entry(f"{prefix}{key.value}", key.value, value, f"{path}:{key.start_mark.line + 1}") for key, value in node.value]
    names = [entry.name for entry in found]
    for index, entry in enumerate(found):
        if entry.name in names[:index]:
            raise ConfigError(f"{entry.where}: {entry.name} is given twice; keep one of the two")
    return found


def _section(path: Path, loader: SettingsLoader, section: Entry) -> dict[str, Any]:
    known = all_settings()
    if section.name not in section_types():
        if section.name in known:
            outer, _, inner = section.name.partition(".")
            raise ConfigError(f"{section.where}: {section.name} must be nested: put '{inner}:' below '{outer}:'")
        hint = did_you_mean(section.name, section_types()) or did_you_mean(section.name, known)
        raise ConfigError(f"{section.where}: unknown section {section.name}{hint}")
    entries = _entries(path, section.node, f"{section.name}.")
    if section.name in known:  # passed through to megatron.core, which knows its names
        return {entry.name.partition(".")[2]: loader.construct_object(entry.node, deep=True) for entry in entries}
    return {entry.name.partition(".")[2]: _value(loader, entry) for entry in entries}


def _under_new_names(settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The settings without old names; where a file has both, the new one counts."""
    for old, new in RENAMED.items():
        (section, key), (new_section, new_key) = old.split("."), new.split(".")
        if key in settings.get(section, {}):
            settings.setdefault(new_section, {}).setdefault(new_key, settings[section].pop(key))
    return settings


def _value(loader: SettingsLoader, entry: Entry) -> Any:
    known, name = all_settings(), RENAMED.get(entry.name, entry.name)
    if name not in known:
        raise ConfigError(f"{entry.where}: unknown setting {entry.name}{did_you_mean(entry.name, [*known, *RENAMED])}")
    value, hint = loader.construct_object(entry.node, deep=True), known[name].hint
    if isinstance(value, str) and "\0" in value:
        raise ConfigError(f"{entry.where}: {entry.name} has a NUL character; remove it")
    if not accepts(hint, value):
        raise ConfigError(f"{entry.where}: {entry.name} is {spell(value)}, must be {describe(hint)}")
    return value
