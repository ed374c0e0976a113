"""Settings from YAML and the command line, and the refusals that name the nearest valid setting."""

import dataclasses
import re
from pathlib import Path

import pytest

from megatron_atesd.config import TrainConfig, build_parser, load_config, save_config
from megatron_atesd.errors import ConfigError
from tests.support.recipes import RECIPES


@pytest.fixture
def yaml_file(tmp_path: Path):
    def write(text: str) -> str:
        (tmp_path / "run.yaml").write_text(text)
        return str(tmp_path / "run.yaml")

    return write


def refusal(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_arguments_give_the_defaults():
    assert load_config([]) == TrainConfig()


@pytest.mark.parametrize("argv", [["--exposure.hold", "3"], ["--exposure.hold=3"]])
def test_both_spellings_of_an_override(argv: list[str]):
    assert load_config(argv).exposure.hold == 3


def test_overrides_win_over_the_file_wherever_they_stand(yaml_file):
    path = yaml_file("exposure: {hold: 7, lookahead: 9}")
    config = load_config(["--exposure.hold", "3", "--config", path])
    assert (config.exposure.hold, config.exposure.lookahead) == (3, 9)


def test_a_later_file_wins_over_an_earlier_one(yaml_file, tmp_path: Path):
    (tmp_path / "second.yaml").write_text("exposure: {hold: 4}")
    config = load_config(["--config", yaml_file("exposure: {hold: 7, lookahead: 9}"), "--config", str(tmp_path / "second.yaml")])
    assert (config.exposure.hold, config.exposure.lookahead) == (4, 9)


def test_of_a_section_for_megatron_core_the_last_file_alone_counts(tmp_path: Path):
    for name, text in {"base": "megatron:\n  a: 1\nrun:\n  updates: 3\n", "last": "megatron:\n  b: 2\n"}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    config = load_config([f"--config={tmp_path / 'base.yaml'}", f"--config={tmp_path / 'last.yaml'}"])
    assert (config.megatron, config.run.updates) == ({"b": 2}, 3)


def test_scientific_notation_is_a_number_in_yaml_and_on_the_command_line(yaml_file):
    path = yaml_file("exposure: {lr: 1e-5}\noptimizer: {lr: 2e-5, eps: 1.e-8}")
    config = load_config(["--config", path, "--optimizer.weight_decay", "1e-2"])
    assert config.exposure.lr == 1e-5
    assert config.optimizer == {"lr": 2e-5, "eps": 1e-8, "weight_decay": 1e-2}


def test_pass_through_overrides_keep_their_yaml_types():
    argv = ["--megatron.recompute_granularity", "full", "--megatron.fp8=null", "--megatron.use_cpu_initialization", "true"]
    assert load_config(argv).megatron == {"recompute_granularity": "full", "fp8": None, "use_cpu_initialization": True}


def test_whole_numbers_are_accepted_for_decimal_settings(yaml_file):
    config = load_config(["--config", yaml_file("exposure: {fixed: 1}")])
    assert isinstance(config.exposure.fixed, float)


def test_null_switches_an_optional_setting_off(yaml_file):
    path = yaml_file("distill: {temperature: 0.7}\nexposure: {entropy_floor: -1.5}")
    config = load_config(["--config", path, "--distill.temperature", "null"])
    assert (config.distill.temperature, config.exposure.entropy_floor) == (None, -1.5)


def test_negative_numbers_and_leading_dashes_are_values():
    config = load_config(["--exposure.entropy_target_end", "-0.5", "--prompt.instruction=--think--"])
    assert (config.exposure.entropy_target_end, config.prompt.instruction) == (-0.5, "--think--")


def test_mode_none_is_the_word_and_not_null(yaml_file):
    path = yaml_file("exposure:\n  mode: none")
    assert load_config(["--config", path]).exposure.mode == load_config(["--exposure.mode", "none"]).exposure.mode == "none"


def test_a_section_with_all_lines_commented_out_keeps_the_defaults(yaml_file):
    assert load_config(["--config", yaml_file("exposure:\n#  hold: 3\nmegatron:\n")]) == TrainConfig()


def test_a_config_shares_no_default_with_another():
    first = load_config([])
    first.exposure.levels.append(0.5)
    first.megatron["num_layers"] = 1
    assert load_config([]) == TrainConfig()


def test_settings_cannot_be_changed_after_loading():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_config([]).run.seed = 2  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--exposure.holdd", "3"], "unknown setting --exposure.holdd; did you mean exposure.hold?"),
        (["--parallel.micro_batch=3"], "unknown setting --parallel.micro_batch; did you mean parallel.micro_batch_tokens?"),
        (["--data.micro_batch_tokens", "3"], "unknown setting --data.micro_batch_tokens; did you mean parallel.micro_batch_tokens?"),
        (["--exposure", "3"], "--exposure is a section; set one of its keys, such as --exposure.mode VALUE"),
        (["exposure.hold=3"], "unexpected argument 'exposure.hold=3'; settings are given as --section.key value"),
        (["--exposure.hold"], "--exposure.hold needs a value: --exposure.hold VALUE"),
        (["--parallel.sequence", "--exposure.hold=3"], "--parallel.sequence needs a value: --parallel.sequence VALUE"),
        (["--exposure.hold", "2.5"], "exposure.hold is '2.5', must be a whole number"),
        (
            ["--exposure.mode", "learnt"],
            "exposure.mode is 'learnt', must be one of learned, aligned, posterior, target_kl, fixed, linear, cosine, step, random, none",
        ),
        (["--distill.temperature", "hot"], "distill.temperature is 'hot', must be a number or null"),
        (["--parallel.sequence", "maybe"], "parallel.sequence is 'maybe', must be true or false"),
        (["--optimizer", "3"], "optimizer is '3', must be a mapping"),
        (["--config", "no/such.yaml"], "--config no/such.yaml: cannot be read (No such file or directory); give the path of a YAML file"),
    ],
)
def test_a_bad_argument_is_refused_in_one_line(argv: list[str], message: str):
    assert refusal(*argv) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run:\n  seed: 1\nexposure:\n  holdd: 3", "4: unknown setting exposure.holdd; did you mean exposure.hold?"),
        ("exposur:\n  hold: 3", "1: unknown section exposur; did you mean exposure?"),
        ("exposure.hold: 3", "1: exposure.hold must be nested: put 'hold:' below 'exposure:'"),
        ("exposure:\n  hold: 2.5", "2: exposure.hold is 2.5, must be a whole number"),
        ("exposure:\n  hold: true", "2: exposure.hold is true, must be a whole number"),
        ("exposure:\n  hold:", "2: exposure.hold is null, must be a whole number"),
        ("data:\n  train: 7", "2: data.train is 7, must be text"),
        ("exposure:\n  hold: 3\n  hold: 4", "3: exposure.hold is given twice; keep one of the two"),
        ("exposure: 3", "1: section exposure must be a mapping of names to values"),
        ("- run", "1: the file must be a mapping of names to values"),
        ("run: a: b", "1: not valid YAML: mapping values are not allowed here"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(yaml_file, text: str, message: str):
    path = yaml_file(text)
    assert refusal("--config", path) == f"{path}:{message}"


def test_a_setting_is_read_by_its_old_name(yaml_file):
    assert load_config(["--config", str(yaml_file("rollout:\n  batch: 3\n  top_k: 7"))]).engine.batch == 3
    assert load_config(["--config", str(yaml_file("rollout:\n  batch: 3\nengine:\n  batch: 4"))]).engine.batch == 4
    assert load_config(["--rollout.batch", "5"]).engine.batch == 5
    assert refusal("--config", yaml_file("rollout:\n  batch: many")).endswith("2: rollout.batch is 'many', must be a whole number")


def test_yaml_cannot_call_python(yaml_file):
    assert "could not determine a constructor" in refusal("--config", yaml_file("run:\n  dir: !!python/object/apply:os.getcwd []"))


def test_help_describes_every_setting():
    page = " ".join(build_parser().format_help().split())
    for section in dataclasses.fields(TrainConfig):
        for setting in dataclasses.fields(section.type) if dataclasses.is_dataclass(section.type) else ():
            name = f"--{section.name}.{setting.name}"
            after = re.split(rf"{re.escape(name)}[ ,]", page, maxsplit=1)[1]
            option = after.removeprefix(f" {name}+").replace(f"{name}+", "").split(" --", 1)[0]  # a list's option has two spellings
            assert len(option.split("(type:")[0].split()) >= 3, f"no description of {section.name}.{setting.name}"


def test_a_saved_config_loads_back_equal(tmp_path: Path):
    argv = [
        "--run.dir",
        "1e-5",
        "--exposure.lr",
        "1e-5",
        "--exposure.mode",
        "none",
        "--prompt.transition",
        "τ: 'a'\n# b",
        "--optimizer.lr=3e-6",
    ]
    config = load_config([*argv, "--megatron.recompute_granularity", "full", "--data.train", "2026-01-01"])
    save_config(config, tmp_path / "config.yaml", {"world_size": 4})
    assert load_config(["--config", str(tmp_path / "config.yaml")]) == config


def test_a_saved_config_names_the_software_that_ran(tmp_path: Path):
    save_config(TrainConfig(), tmp_path / "config.yaml", {"world_size": 4})
    versions = (tmp_path / "config.yaml").read_text().split("\nversions:\n")[1]
    assert [line.split(":")[0].strip() for line in versions.splitlines()][:4] == ["python", "torch", "megatron-core", "transformers"]
    assert "world_size: 4" in versions


def test_there_are_examples():
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_shipped_config_is_accepted(path: Path):
    assert load_config(["--config", str(path)]) != TrainConfig()
