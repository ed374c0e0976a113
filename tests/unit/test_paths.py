"""`~` in every path that a user gives: in YAML files, in overrides, and in the options of commands."""

import dataclasses
import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpoints_convert.command import command_parser
from megatron_atesd.config import TrainConfig, all_settings, load_config, save_config
from megatron_atesd.errors import ConfigError
from megatron_atesd.paths import user_path

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ["run.dir", "model.path", "lora.start", "data.train", "data.probe"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def value_of(config: TrainConfig, name: str) -> Any:
    section, _, key = name.partition(".")
    return getattr(config, section)[key] if section == "megatron" else getattr(getattr(config, section), key)


def in_yaml(name: str, value: str, folder: Path) -> TrainConfig:
    section, _, key = name.partition(".")
    (folder / "settings.yaml").write_text(f"{section}:\n  {key}: '{value}'\n")
    return load_config(["--config", str(folder / "settings.yaml")])


def as_option(name: str, value: str, folder: Path) -> TrainConfig:
    return load_config([f"--{name}={value}"])


def test_these_settings_are_paths():
    assert [name for name, setting in all_settings().items() if setting.is_path] == [*SETTINGS, "eval.files"]


@pytest.mark.parametrize("load", [in_yaml, as_option])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("~", "HOME"),
        ("~/", "HOME/"),
        ("~/runs/a b", "HOME/runs/a b"),
        ("~/模型/α", "HOME/模型/α"),
        ("./~/x", "./~/x"),
        ("runs/~/x", "runs/~/x"),
        ("runs/x~", "runs/x~"),
        ("/data/x/", "/data/x/"),
    ],
)
def test_a_home_directory_at_the_start_of_a_setting_is_written_out(
    load: Callable[[str, str, Path], TrainConfig], name: str, given: str, meant: str, tmp_path: Path, home: Path
):
    assert value_of(load(name, given, tmp_path), name) == meant.replace("HOME", str(home))


def test_each_path_of_a_list_is_written_out(tmp_path: Path, home: Path):
    (tmp_path / "settings.yaml").write_text("eval: {files: [~/a.jsonl, b.jsonl]}")
    assert load_config(["--config", str(tmp_path / "settings.yaml")]).eval.files == [f"{home}/a.jsonl", "b.jsonl"]
    assert load_config(['--eval.files=["~/a.jsonl"]']).eval.files == [f"{home}/a.jsonl"]


def test_a_path_for_megatron_is_written_out_too(tmp_path: Path, home: Path):
    assert in_yaml("megatron.config_logger_dir", "~/logs", tmp_path).megatron == {"config_logger_dir": f"{home}/logs"}


def test_a_text_that_is_no_path_keeps_its_tilde(tmp_path: Path):
    assert in_yaml("prompt.instruction", "~ means about", tmp_path).prompt.instruction == "~ means about"


@pytest.mark.parametrize("name", SETTINGS)
def test_an_unknown_home_directory_is_refused_under_the_name_of_the_setting(name: str):
    with pytest.raises(ConfigError, match=rf"^{re.escape(name)} is ~no-such-user/x begins"):
        load_config([f"--{name}=~no-such-user/x"])


def test_what_is_saved_is_written_out(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch):
    save_config(load_config(["--run.dir=~/a"]), tmp_path / "config.yaml")
    monkeypatch.setenv("HOME", "/elsewhere")
    assert load_config(["--config", str(tmp_path / "config.yaml")]).run.dir == f"{home}/a"


def test_config_may_lie_in_the_home_directory(home: Path):
    home.mkdir()
    (home / "my.yaml").write_text("run: {seed: 7}")
    assert load_config(["--config=~/my.yaml"]).run.seed == 7


@pytest.mark.parametrize(
    ("given", "meant"), [("~/a.json", "HOME/a.json"), ("~", "HOME"), ("a~", "a~"), ("./~/a", "~/a"), ("", "."), ("/x/../y", "/x/../y")]
)
def test_an_option_of_a_command(given: str, meant: str, home: Path):
    assert user_path(given) == Path(meant.replace("HOME", str(home)))


def test_an_unknown_home_directory_in_an_option_is_refused():
    with pytest.raises(ConfigError, match=r"^~no-such-user begins with a home directory that is not known here"):
        user_path("~no-such-user")


def test_both_converters_take_one(home: Path):
    options = command_parser("", "hf", "", "").parse_args(["--hf=~/model", "--out=~/out"])
    assert (options.source, options.out) == (home / "model", home / "out")


TOOLS: list[tuple[str, list[str], str]] = [
    ("plan", ["--gpus=1", "--gpu=h100", "--json=~/x"], "json"),
    ("bench_gpu", ["--out=~/x"], "out"),
    ("fp8_gap", ["--out=~/x"], "out"),
]


@pytest.mark.parametrize(("tool", "words", "name"), TOOLS)
def test_tools_beside_settings_take_one(tool: str, words: list[str], name: str, home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.setattr(sys, "argv", [tool, *words])
    options, _ = importlib.import_module(f"tools.{tool}").parse()
    assert getattr(options, name) == home / "x"


@pytest.mark.parametrize(
    "script", sorted([*ROOT.glob("tools/*.py"), *ROOT.glob("checkpoints_convert/*.py"), *ROOT.glob("examples/*/*.py")])
)
def test_no_command_reads_a_path_another_way(script: Path):
    assert "type=Path" not in script.read_text(encoding="utf-8")


def test_settings_without_a_section_are_left_alone():
    plain = load_config([])
    assert dataclasses.asdict(plain) == dataclasses.asdict(TrainConfig())
