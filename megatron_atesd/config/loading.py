"""From a YAML file and dotted overrides to a TrainConfig, and back to a YAML file.

    config = load_config(["--config", "run.yaml", "--exposure.hold", "3", "--optimizer.lr=1e-5"])

Overrides win over the file, the file wins over the defaults.
"""

import argparse
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_origin

import yaml
from jsonargparse import ArgumentParser, Namespace

from megatron_atesd.config.fields import (
    RENAMED,
    Setting,
    all_settings,
    describe,
    did_you_mean,
    section_settings,
    section_title,
    section_types,
)
from megatron_atesd.config.rules import refuse
from megatron_atesd.config.schema import TrainConfig
from megatron_atesd.config.yaml import SettingsDumper, read_settings
from megatron_atesd.errors import ConfigError
from megatron_atesd.logs import add_log_level
from megatron_atesd.paths import user_path, with_home

HELP_FLAGS = ("-h", "--help")


def load_config(argv: Sequence[str] | None = None, decided: Mapping[str, str] | None = None) -> TrainConfig:
    """Settings of a command line: `--config FILE` (YAML, may be repeated) and `--section.key value` overrides.

    argv: arguments without the program name; None takes those of this process. `--help` prints every setting and exits with 0.
    decided: settings that flags of the command decide, with the flag of each: what a file says of them is the command's to ignore, but
    an override would be ignored unsaid.
    Raises ConfigError for an unknown name (with the nearest valid one), a value of the wrong type, an override of a `decided` setting, or
    an unreadable file. Rules between settings are checked by `validate`. In settings that are paths, `~` is the home directory.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    if any(argument in HELP_FLAGS for argument in arguments):
        parser.parse_args(["--help"])
    pairs = _pairs(arguments)
    refuse_decided([name for name, _ in pairs], decided or {})
    settings = _layered(parser, [read_settings(user_path(value)) for name, value in pairs if name == "config"])
    overrides = [(name, value) for name, value in pairs if name != "config"]
    try:
        settings = parser.parse_args([f"--{name}={value}" for name, value in overrides], settings)
    except argparse.ArgumentError as error:
        raise _type_error(str(error), overrides) from None
    return _to_config(settings)


def layered_config(layers: Sequence[Mapping[str, Mapping[str, Any]]]) -> TrainConfig:
    """The config of `read_settings` results, later ones over earlier ones over the defaults."""
    return _to_config(_layered(build_parser(), layers))


def _layered(parser: ArgumentParser, layers: Sequence[Mapping[str, Mapping[str, Any]]]) -> Namespace:
    """The settings of `layers`; a section that is passed through to megatron.core takes the place of an earlier one as a whole."""
    settings: dict[str, Mapping[str, Any]] = {}
    for layer in layers:
        for section, values in layer.items():
            settings[section] = values if section in all_settings() else {**settings.get(section, {}), **values}
    return parser.parse_object(settings)


def build_parser() -> ArgumentParser:
    """The parser that types the overrides and prints `--help`: one group a section, one option a setting."""
    parser = ArgumentParser(
        exit_on_error=False,
        default_env=False,
        allow_abbrev=False,
        usage="%(prog)s --config FILE [--section.key value ...]",
        description="Settings come from the YAML file; --section.key value (or --section.key=value) overrides one of them.",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with a mapping for each section below.")
    add_log_level(parser)
    known, passed_through = all_settings(), []
    for section in section_types():
        if section in known:
            passed_through.append(known[section])
        else:
            _add_group(parser, f"{section}: {section_title(section).rstrip('.')}", section_settings(section))
    _add_group(parser, "passed through to megatron.core, as --megatron.NAME value", passed_through)
    return parser


def _add_group(parser: ArgumentParser, title: str, settings: Sequence[Setting]) -> None:
    group = parser.add_argument_group(title)
    for setting in settings:
        metavar = None if get_origin(setting.hint) is Literal or setting.hint is bool else "VALUE"
        text = setting.help.replace("%", "%%")
        group.add_argument(f"--{setting.name}", type=setting.hint, default=setting.default, metavar=metavar, help=text)


def _pairs(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """(name, value) of each argument, all names known."""
    pairs, rest = [], list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise ConfigError(f"unexpected argument {word!r}; settings are given as --section.key value")
        name, equals, value = word[2:].partition("=")
        name = RENAMED.get(name, name)
        _check_name(name)
        if not equals and (not rest or rest[0].startswith("--")):
            raise ConfigError(f"--{name} needs a value: --{name} VALUE")
        pairs.append((name, value if equals else rest.pop(0)))
    return pairs


def _check_name(name: str) -> None:
    known = all_settings()
    section, _, key = name.partition(".")
    if name == "config" or name in known or (key and section in known):
        return
    if name in section_types():
        raise ConfigError(f"--{name} is a section; set one of its keys, such as --{section_settings(name)[0].name} VALUE")
    raise ConfigError(f"unknown setting --{name}{did_you_mean(name, [*known, 'config'])}")


def _type_error(message: str, overrides: Sequence[tuple[str, str]]) -> ConfigError:
    """One line for a parser's refusal, which names the setting as `Parser key "…"`."""
    found = re.search(r'key "([^"]+)"', message)
    known, values = all_settings(), dict(overrides)
    if found is None or found[1] not in known or found[1] not in values:
        return ConfigError(" ".join(message.split()))
    return ConfigError(f"{found[1]} is {values[found[1]]!r}, must be {describe(known[found[1]].hint)}")


def refuse_decided(names: Sequence[str], decided: Mapping[str, str]) -> None:
    """Raise one ConfigError that lists each overridden setting that a flag of the command decides."""
    refuse([f"--{name} would have no effect, because {decided[name]} decides here; give that instead" for name in decided if name in names])


def _to_config(settings: Namespace) -> TrainConfig:
    for setting in all_settings().values():
        if setting.is_path:
            given = settings[setting.name]
            written = [_written_out(setting.name, path) for path in given] if isinstance(given, list) else _written_out(setting.name, given)
            settings[setting.name] = written
    values: dict[str, Any] = {}
    for section, cls in section_types().items():
        given = settings[section]
        values[section] = cls(**vars(given)) if isinstance(given, Namespace) else _passed_through(section, given or {})
    return TrainConfig(**values)


def _passed_through(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A section for megatron.core; only its paths begin with `~`."""
    return {key: _written_out(f"{section}.{key}", value) if isinstance(value, str) else value for key, value in values.items()}


def _written_out(name: str, path: str) -> str:
    try:
        return with_home(path)
    except ConfigError as error:
        raise ConfigError(f"{name} is {error}") from None


def save_config(config: TrainConfig, path: str | Path, extra: Mapping[str, Any] | None = None) -> None:
    """Write every setting, and under `versions` what produced the run (plus `extra`); load_config reads it back to an equal config."""
    versions = software_versions() | dict(extra or {})
    text = yaml.dump(asdict(config) | {"versions": versions}, Dumper=SettingsDumper, sort_keys=False, allow_unicode=True, width=120)
    Path(path).write_text(text, encoding="utf-8")


def software_versions() -> dict[str, str]:
    """package_versions, and the git revision when running from a checkout."""
    return package_versions() | ({"git": revision} if (revision := git_revision()) else {})


def package_versions() -> dict[str, str]:
    """Python, torch, megatron-core and transformers versions."""
    packages = ("torch", "megatron-core", "transformers")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}


def git_revision() -> str | None:
    """Commit of this checkout, with -dirty when files differ from it; None outside a checkout or without git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
