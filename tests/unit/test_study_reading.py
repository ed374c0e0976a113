"""What a study file may say: how arms get their settings, and every mistake refused in one line that names file, place and rule."""

from itertools import product
from pathlib import Path

import pytest

from megatron_atesd.errors import ConfigError
from megatron_atesd.study.design import Check, Run
from megatron_atesd.study.reading import read_study
from tests.support.fake_study import ROOT, save_study

STUDIES = sorted((ROOT / "examples" / "mini_study").glob("*.yaml"))


def changed(folder: Path, old: str, new: str) -> Path:
    study = save_study(folder)
    text = study.read_text()
    assert old in text
    study.write_text(text.replace(old, new, 1))
    return study


def test_an_arm_adds_to_the_settings_of_all(tmp_path: Path):
    (tmp_path / "more.yaml").write_text("exposure: {hold: 7, grid: 3}\noptimizer: {lr: 1e-3}\n")
    arm = f"half: {{config: {tmp_path}/more.yaml, exposure: {{mode: fixed, fixed: 0.5, grid: 4}}}}"
    config = read_study(changed(tmp_path, "half: {exposure: {mode: fixed, fixed: 0.5}}", arm)).arms["half"].config
    assert (config.run.updates, config.exposure.fixed, config.exposure.hold, config.exposure.grid) == (3, 0.5, 7, 4)
    assert config.optimizer["lr"] == 1e-3


def test_a_run_has_its_own_seed_folder_model_and_problems(tmp_path: Path):
    study = read_study(save_study(tmp_path))
    config, out = study.config(Run(2, "8", "det", "full")), tmp_path / "out"
    assert (config.run.seed, config.run.dir) == (2, f"{out}/runs/det/8/full/2")
    assert (config.model.path, config.data.train) == (f"{out}/bases/8", f"{out}/data/det/8/train.jsonl")


def test_runs_come_seed_by_seed_so_that_early_ones_can_be_compared(tmp_path: Path):
    runs = list(read_study(save_study(tmp_path)).runs())
    assert len(set(runs)) == len(runs) == 24
    assert [(run.seed, run.base) for run in runs] == sorted((run.seed, run.base) for run in runs)


def test_an_arm_may_be_for_some_tasks_only(tmp_path: Path):
    study = read_study(changed(tmp_path, "half: {exposure", "half: {tasks: det, exposure"))
    assert {run.task for run in study.runs() if run.arm == "half"} == {"det"}


def test_signals_are_checked_on_every_task_from_every_base(tmp_path: Path):
    study = read_study(save_study(tmp_path))
    assert {(check.task, check.base, check.lead) for check in study.checks()} == set(product(("late", "det"), ("7", "8"), (0, 1)))
    config, out = study.check_config(Check("8", "det", 1)), tmp_path / "out"
    assert (config.run.seed, config.run.dir, config.model.path) == (1, f"{out}/signals/det/8/1/run", f"{out}/bases/8")


def test_the_checkpoint_that_is_evaluated_is_kept(tmp_path: Path):
    study = read_study(changed(tmp_path, "run: {updates: 3}", "run: {updates: 9}, checkpoint: {every: 1, keep: 1}"))
    assert study.config(next(study.runs())).checkpoint.keep_every == 3


def test_a_number_in_a_list_of_names_is_what_is_written(tmp_path: Path):
    assert read_study(changed(tmp_path, "names: [7, 8]", "names: [010, 1.50]")).bases.names == ["010", "1.50"]


def test_a_home_directory_may_be_written_short_in_all_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    study = read_study(changed(tmp_path, 'model: "{folder}"', 'model: "~/models/{base}"'))
    assert study.model("7") == Path("/home/me/models/7")


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_the_mini_study_keeps_every_rule(file: Path):
    study = read_study(file)
    assert len(study.bases.names) >= 3
    assert not {"1", "2", "7", "8"} & set(study.bases.names), "a base that was used for tuning"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("out:", "outt: x\nout:", "study.yaml:2: unknown name outt; did you mean out?"),
        ("seeds: [1, 2]\n", "", "study.yaml: lacks seeds"),
        ("seeds: [1, 2]", "seeds: [1, two]", "study.yaml:3: seeds is [1, 'two'], must be a list of a whole number"),
        ("seeds: [1, 2]", "seeds: [1, 1]", "seeds is [1, 1], must be a list of different ones"),
        ("seeds: [1, 2]", "seeds: [-1]", "seeds has -1, must be 0 or more"),
        ("names: [7, 8]", "names: [7, a/b]", "bases.names has 'a/b', must be letters, digits"),
        ("half: {", "half/x: {", "arms.half/x: the name 'half/x' must be letters, digits"),
        ("mode: linear", "mode: liner", "exposure.mode is 'liner', must be one of"),
        ("mode: linear", "mod: linear", "unknown setting exposure.mod"),
        ("mode: linear", "mode: linear, hold: 0", "arms.warm: exposure.hold is 0, must be 1 or more"),
        ("fixed: 0.25}", "fixed: 0.25}, data: {batch: 8}", "arms.warm: data.batch differs from that of settings"),
        ("fixed: 0.25}", "fixed: 0.25}, rollout: {top_k: 8}", "arms.warm: rollout differs from that of settings"),
        ("fixed: 0.25}", "fixed: 0.25}, tasks: [dett]", "arms.warm: tasks has dett, which is no task; did you mean det?"),
        ("fixed: [half, full]", "fixed: [half, ful]", "fixed has ful, which is no arm; did you mean full?"),
        ("fixed: [half, full]", "fixed: [half, warm]", "fixed has warm, whose exposure.mode is linear, must be fixed"),
        ("references: [full]", "references: [ful]", "references has ful, which is no arm"),
        ("update: 3", "update: 4", "run.updates is 3, but evaluation.update is 4, which is never reached"),
        ("update: 3", "update: 2", "checkpoint.every is 50, which saves nothing after evaluation.update 2"),
        ("samples: 4", "samples: 0", "evaluation.samples is 0, must be 1 or more"),
        ("samples: 4", "sample: 4", "unknown name evaluation.sample; did you mean samples?"),
        ("{folder}/test.jsonl", "{fold}/test.jsonl", "tasks.late.test has {fold}, must be of {folder}, {base}"),
        ('model: "{folder}"', "model: [a]", "bases.model is ['a'], must be text"),
        ("references: [full]", "references: [full]\nunit: seed", "unit is 'seed', must be one of base, run"),
        ("references: [full]", "references: [full]\nprocesses: 0", "processes is 0, must be 1 or more"),
        ("{exposure: {mode: fixed, fixed: 0.5}}", "[]", "section arms.half must be a mapping"),
        ("seeds: [1, 2]", "seeds: [1, 2", "not valid YAML"),
        ("leads: [0, 1]", "leads: [0, 2]", "signals.leads has 2, and with signals.updates 2 more than run.updates 3"),
        ("leads: [0, 1]", "leads: [1, 1]", "signals.leads is [1, 1], must be different numbers of updates"),
        ("signals: {updates: 2", "signals: {updates: 0", "signals.updates is 0, must be 1 or more"),
        ("alphas: [0.0, 0.5, 1.0]", "alphas: [0.5]", "signals.alphas is [0.5], must be two or more numbers from 0 to 1"),
        ("alphas: [0.0, 0.5, 1.0]", "alphas: [0, half]", "study.yaml:16: signals.alphas is [0, 'half'], must be a list of a number"),
        (
            "{run: {updates: 3}}",
            "{run: {updates: 3}, exposure: {mode: none}}",
            "settings, with which signals are checked: exposure.bias_check",
        ),
        ("samples: 4", "top_p: 2", "evaluation.top_p is 2, must be greater than 0 and at most 1"),
        ("samples: 4", "temperature: .nan", "evaluation.temperature is nan, must be 0 (the most likely token) or"),
        ("out:", 'out: "a\\0b" #', "study.yaml:2: out has a NUL character"),
        ("out:", 'out: "" #', "study.yaml:2: out is empty; give a text"),
        ('make: ["', 'make: ["it\'s", "', 'bases.make has "it\'s", which cannot be split into words (No closing quotation)'),
        ('make: ["', 'make: ["", "', "bases.make has '', must be a command"),
        ('model: "{folder}"', "model: models/x", "bases.model is models/x for all of 7, 8, whose runs would pass for observations"),
        ("{folder}/test.jsonl", "{folder}/train.jsonl", "tasks.late.test is also its train, must be held out"),
        ("names: [7, 8]", "names: [7, 7.log]", "bases.names has '7.log', must be letters, digits"),
        (
            "fixed: 0.5}}",
            "fixed: 0.5}, run: {seed: 4}}",
            "study.yaml:10: arms.half.run.seed would have no effect, because seeds decides it",
        ),
        ("{run: {updates: 3}}", "{run: {updates: 3}, data: {train: x}}", "study.yaml:8: settings.data.train would have no effect, because"),
        ("fixed: 0.5}}", "fixed: 0.5}, config: none.yaml}", "study.yaml:10: arms.half.config none.yaml: cannot be read"),
        ("fixed: 0.5}}", "fixed: 1}}", "fixed has half and full at the same α 1.0, must be one arm an α"),
        ("fixed: [half, full]", "fixed: [half, half]", "fixed has half and half at the same α 0.5"),
        (
            "fixed: 0.5}}",
            "bins: 2, difficulty: field, bin_edges: [3], fixed_by_bin: [1.0, 0.5]}}",
            "fixed has half, whose exposure.bins is 2: it has no one α",
        ),
        ("leads: [0, 1]", "leads: [0], lead_alpha: 2", "signals.lead_alpha is 2, must be from 0 to 1"),
    ],
)
def test_a_mistake_is_refused_by_name(old: str, new: str, said: str, tmp_path: Path):
    study = changed(tmp_path, old, new)
    with pytest.raises(ConfigError) as refused:
        read_study(study)
    assert said in str(refused.value)
    assert str(study) in str(refused.value)


def test_a_study_without_arms_is_refused(tmp_path: Path):
    study = save_study(tmp_path)
    study.write_text("".join(line for line in study.read_text().splitlines(keepends=True) if ": {exposure:" not in line))
    with pytest.raises(ConfigError, match="arms is empty; name at least one"):
        read_study(study)


def test_commands_that_would_fill_a_folder_must_be_there(tmp_path: Path):
    study = save_study(tmp_path)
    lines = study.read_text().splitlines()
    make = next(line for line in lines if line.startswith("bases:"))
    study.write_text(study.read_text().replace(make, 'bases: {names: [7, 8], model: "{folder}"}'))
    with pytest.raises(ConfigError, match=r"bases\.make is missing, though bases points into \{folder\}"):
        read_study(study)


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read"):
        read_study(tmp_path / "none.yaml")
